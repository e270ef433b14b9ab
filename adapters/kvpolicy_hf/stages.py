"""What the stages of a policy say of themselves."""

from __future__ import annotations

from kvpolicy import Policy

__all__ = ["saying"]


def saying(policy: Policy, name: str) -> list[str]:
    """The stages, as they print, whose attribute of this name is true."""
    pipelines = [pipeline for pipeline in (policy.prefill, policy.decode) if pipeline is not None]
    stages = [stage for p in pipelines for stage in (p.score, p.allocate, p.select, p.merge, p.recall)]
    return [repr(stage) for stage in stages if getattr(stage, name, False)]
