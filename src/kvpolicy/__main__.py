"""`python -m kvpolicy`: the same as the `kvpolicy` command."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
