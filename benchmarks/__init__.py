"""What is measured, and with what. A suite is one process: ``python -m benchmarks.SUITE result.json``.

Suites: `kernels`, `prefill`, `decode`, `series`, `capacity`, `cpu`, and `peers`, in an environment of its own without
kvpolicy. Each writes one JSON file, after every arm. ``--small`` runs everything at tiny sizes, also without a GPU;
``--only TEXT`` runs the arms whose label contains the text. `scripts.performance` makes a page of the files.
"""
