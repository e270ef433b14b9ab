"""The page docs/fidelity.md: what each recipe computes, where released code differs, and what that difference does.

`python -m scripts.fidelity` in the repository's root measures everything and writes the page; see `__main__`.
"""
