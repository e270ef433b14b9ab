"""`docs/performance.md` and its plots, from the JSON files that the suites of `benchmarks` wrote.

`python -m scripts.performance` in the root of the repository writes them. Nothing is measured here, and nothing is
typed in: a suite whose file is missing, and an arm that was not timed, are listed as such.
"""
