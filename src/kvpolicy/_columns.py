"""Names of columns that one stage fills and another reads, and where a column comes from."""

from __future__ import annotations

__all__ = ["how_to_bring", "strong_at"]

# By the name in front of a threshold or a number.
OBSERVERS = {
    "mass": "AttentionMass",
    "asked": "AttentionMass(reduce='mean')",
    "moving": "AttentionMass(reduce='moving')",
    "after_image": "PostImageMass",
    "strong": "PostImageMass",
    "asked_after": "PostImageMass",
    "code": "GRUController",
}


def strong_at(threshold: float) -> str:
    """How often a row got at least this share of the largest attention that a query pays."""
    return f"strong@{threshold:g}"


def how_to_bring(name: str) -> str:
    """What to do about a column that a table does not carry."""
    if name == "segment":
        return "pass inputs= to PolicyCache, or segments=."
    observer = OBSERVERS.get(name.partition("@")[0].rstrip("0123456789"))
    if observer is not None:
        return f"{observer} observes it: score with that, or return what its `observe` gives from your scorer's own."
    return (
        f"return it from `observe` of the scorer, {{{name!r}: Column(...)}}, or bring it with the tokens, "
        f"Pass(columns={{{name!r}: ...}})."
    )
