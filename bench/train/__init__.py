"""Train the bench model: ``PYTHONPATH=bench/src:bench python -m train --help``."""
