"""What people write in the place of `PolicyCache(model, policy)`, and what they meant."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import isfunction
from typing import Any, ParamSpec

from kvpolicy import ImportanceScorer, Pipeline, Policy, PolicyError

from ._transformers import PreTrainedModel

__all__ = ["asks_for_both", "check_policy"]

P = ParamSpec("P")


def asks_for_both(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that says in words that its ``model`` or its ``policy`` was forgotten.

    Python's own error names an argument and no fix. Defaults would let us answer too, but type checkers would then let
    the mistake pass.

    Raises:
        PolicyError: when one is missing.
    """

    @functools.wraps(init)
    def made(*args: P.args, **kwargs: P.kwargs) -> None:
        given = [*args[1:3], *(kwargs[name] for name in ("model", "policy") if name in kwargs)]  # args[0] is self
        if len(given) < 2:
            missing = "policy" if any(isinstance(each, PreTrainedModel) for each in given) else "model"
            got = "".join(f", only a {type(each).__name__}" for each in given)
            raise PolicyError(
                f"PolicyCache({missing}=...): there is no {missing}{got}. Hint: PolicyCache(model, policy)."
            )
        init(*args, **kwargs)

    return made


def check_policy(policy: Any) -> None:
    """Raise unless it is one.

    Raises:
        PolicyError: with how what was given becomes a policy.
    """
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"PolicyCache(policy=...): policy must be a kvpolicy.Policy, not a {type(policy).__name__}. "
            f"Hint: {_policy_from(policy)}."
        )


def _policy_from(given: Any) -> str:
    """How what was given in place of a policy becomes one. A class that was not called is taken for its instance."""
    name = getattr(given, "__name__", type(given).__name__)
    if isinstance(given, PreTrainedModel):
        return "PolicyCache(model, policy), the model first"
    if isinstance(given, str):
        return f"kvpolicy.from_text({given!r}, keep=0.2)"
    if isinstance(given, Pipeline):
        return "Policy(prefill=pipeline, decode=pipeline)"
    if isinstance(given, ImportanceScorer):
        return f"Policy(prefill=Pipeline(schedule=KeepRatio(0.2), score={name}(...)))"
    return f"{name}(keep=0.2)" if isfunction(given) else "kvpolicy.elastic_cache(keep=0.2)"
