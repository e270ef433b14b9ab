"""The same requests under kvpress: a process of its own, for kvpress 0.5.5 needs transformers below 5.3.

Nothing here imports kvpolicy. `pip install kvpress==0.5.5` makes an environment; the suites of kvpolicy run in another.
"""
