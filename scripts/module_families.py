"""Modules in families with one idea each, for `scripts.architecture`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "PACKAGES", "Family"]

PACKAGES = ("kvpolicy", "kvpolicy_hf")


@dataclass(frozen=True)
class Family:
    """Modules with one idea.

    Attributes:
        name: what the drawing calls it.
        idea: the idea.
        modules: a package stands for all that is in it.
        column: where it is drawn; the row follows from the imports.
        look: how it is drawn.
    """

    name: str
    idea: str
    modules: tuple[str, ...]
    column: int = 1
    look: str = "box"


FAMILIES = (
    Family(
        "tools",
        "Measure, record, search and draw, with models",
        (
            "kvpolicy_hf",
            *(
                f"kvpolicy_hf.{name}"
                for name in "_progress demo evaluate loading plots simulate train_controller tune".split()
            ),
        ),
        look="violet",
    ),
    Family(
        "adapter",
        "A PolicyCache goes where a cache of transformers goes",
        tuple(
            f"kvpolicy_hf.{name}"
            for name in (
                "_slips _stand_ins _transformers attention backend cache compile latents layer passes press prompt "
                "rotary segments served_model softmax stages sums switch taking_back tensor_parallel"
            ).split()
        ),
        look="violet",
    ),
    Family(
        "command line", "List and explain recipes; other commands plug in", ("kvpolicy.cli", "kvpolicy.__main__"), 0
    ),
    Family("public names", "All that an adapter may import", ("kvpolicy",), look="amber"),
    Family("conformance kit", "Hold any policy or stage to the laws", ("kvpolicy.testing",), 2),
    Family(
        "files and text",
        "Policies as JSON, TOML and one-line text",
        tuple(f"kvpolicy.{name}" for name in "_serial _serial_names _serial_stages _target _text".split()),
        0,
    ),
    Family("session", "One request: the only thing that changes", ("kvpolicy._session",), look="blue"),
    Family("recipes", "Published methods, a file each", ("kvpolicy.policies",), 0, look="green"),
    Family(
        "engine",
        "Observe, plan and carry out, a layer and a pass at a time",
        tuple(
            f"kvpolicy.{name}"
            for name in (
                "_alike _answers _engine _forecast _layer _planner _slots _steady _steady_layers _tentative _trial"
            ).split()
        ),
        look="blue",
    ),
    Family("report", "What was kept, and what it takes", ("kvpolicy.report",)),
    Family("policy", "Two pipelines of stages, checked when they are built", ("kvpolicy._policy",), look="green"),
    Family(
        "stages",
        "Schedulers, scorers, allocators, selectors, mergers, recallers: values in, values out",
        tuple(f"kvpolicy.{name}" for name in "allocators mergers recallers schedulers scorers selectors".split()),
        look="green",
    ),
    Family("backends", "The heavy operations: numpy, torch, Triton", ("kvpolicy.backends",), 2, look="blue"),
    Family("protocols", "What a stage or a backend has to have", ("kvpolicy._protocols",), look="amber"),
    Family(
        "data",
        "The table, the step, the plan, the errors",
        tuple(
            f"kvpolicy.{name}"
            for name in (
                "_check _columns _doubts _ends _errors _hash _heads _namespace _pass _placed _plan _repr _step "
                "_tokens _types"
            ).split()
        ),
        look="amber",
    ),
)
