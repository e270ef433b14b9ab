"""What is measured, and with what: each module is one measurement, run with ``python -m benchmarks.NAME``."""
