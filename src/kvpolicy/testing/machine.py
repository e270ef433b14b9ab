"""Generations at random: hypothesis chooses what happens next, the engine and the slow model are compared after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .._errors import PolicyError
from .._policy import Policy
from .strategies import segments
from .traces import Crop, Decode, Op, Prefill, Reorder, Replay, Reset, Trace, Turn

__all__ = ["GenerationMachine", "generation_machine", "traces"]

PROMPT, BATCH, STEPS, LONGEST = 10, 3, 8, 24  # tokens, batch rows, operations, and tokens of the whole request


def generation_machine(
    policy: Policy, *, backend: str = "torch", sizes: Mapping[str, Any] | None = None
) -> type[GenerationMachine]:
    """The state machine of one policy, for `hypothesis.stateful.run_state_machine_as_test`.

    Args:
        policy: under test.
        backend: ``"torch"``, ``"numpy"``, ``"torch:cuda"``.
        sizes: fields of `Trace` that are not to be drawn, for a policy that needs a certain model, such as
            ``{"layers": 3, "heads": 2}`` for a table of heads.

    Raises:
        PolicyError: if a size is not a field of `Trace`.
    """
    fixed = MappingProxyType(dict(sizes or {}))
    _check_fixed("generation_machine", fixed)
    made: Any = type("GenerationMachine", (GenerationMachine,), {"policy": policy, "backend": backend, "sizes": fixed})
    made.TestCase.settings = settings(stateful_step_count=STEPS, deadline=None)
    machine: type[GenerationMachine] = made
    return machine


class GenerationMachine(RuleBasedStateMachine):
    """Prompts (whole or in chunks), decode steps, further turns, beams, tokens taken back, new requests.

    A difference raises `BrokenTraceError`, whose ``trace`` is what was played. `generation_machine` makes a class for a
    policy.
    """

    policy: ClassVar[Policy]
    backend: ClassVar[str] = "torch"
    sizes: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    playing: Replay

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """A model, and the first prompt."""
        trace = data.draw(_beginnings(self.sizes), label="begin")
        self.playing = Replay(self.policy, trace, backend=self.backend)
        for op in trace.ops:
            self.playing.play(op)

    @precondition(lambda self: self.playing.length == 0)
    @rule(data=st.data())
    def prefill(self, data: st.DataObject) -> None:
        """The prompt of a further request."""
        self.playing.play(data.draw(_prompts(self.playing.trace.prompt_length), label="prefill"))

    @precondition(lambda self: 0 < self.playing.length < LONGEST)
    @rule(steps=st.integers(1, 3))
    def decode(self, steps: int) -> None:
        """A few tokens, one by one."""
        self.playing.play(Decode(steps))

    @precondition(lambda self: 0 < self.playing.length < LONGEST)
    @rule(tokens=st.integers(2, 4))
    def turn(self, tokens: int) -> None:
        """Several tokens in one pass."""
        self.playing.play(Turn(tokens))

    @rule(index=st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=BATCH))
    def reorder(self, index: list[int]) -> None:
        """Beams, or batch rows that are finished."""
        self.playing.play(Reorder(tuple(index)))

    @precondition(lambda self: self.playing.length > 0)
    @rule(tokens=st.integers(1, 4))
    def crop(self, tokens: int) -> None:
        """Tokens are taken back, if that can be done exactly."""
        self.playing.play(Crop(tokens))

    @precondition(lambda self: self.playing.length > 0)
    @rule()
    def reset(self) -> None:
        """The session serves another request."""
        self.playing.play(Reset())


@st.composite
def traces(draw: st.DrawFn, /, **fixed: Any) -> Trace:
    """Whole traces: a prompt and up to eight operations.

    Args:
        draw: given by hypothesis.
        **fixed: fields of `Trace` that are not to be drawn.

    Raises:
        PolicyError: if one is not a field of `Trace`.
    """
    _check_fixed("traces", fixed)
    trace = draw(_beginnings(fixed))
    if "ops" in fixed:
        return trace
    further: st.SearchStrategy[list[Op]] = st.one_of(
        st.builds(lambda steps: [Decode(steps)], st.integers(1, 3)),
        st.builds(lambda tokens: [Turn(tokens)], st.integers(2, 4)),
        st.builds(
            lambda index: [Reorder(tuple(index))], st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=BATCH)
        ),
        st.builds(lambda tokens: [Crop(tokens)], st.integers(1, 4)),
        st.builds(lambda prompt: [Reset(), prompt], _prompts(trace.prompt_length)),
    )
    ops = [op for part in draw(st.lists(further, max_size=STEPS)) for op in part]
    return Trace(**{**{f.name: getattr(trace, f.name) for f in fields(Trace)}, "ops": (*trace.ops, *ops)})


@st.composite
def _beginnings(draw: st.DrawFn, fixed: Mapping[str, Any]) -> Trace:
    """The sizes of a model, and a prompt."""
    tokens = draw(st.integers(1, PROMPT))
    choices: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 2**16),
        "layers": st.sampled_from([1, 1, 2, 3]),  # mostly small: a run is to take milliseconds
        "batch": st.just(len(fixed["padding"])) if fixed.get("padding") else st.sampled_from([1, 2, 1, BATCH]),
        "heads": st.integers(1, 2),
        "groups": st.integers(1, 2),
        "dim": st.sampled_from([2, 4]),
        "value_dim": st.integers(1, 3),
        "image": segments(6),
        "prompt_length": st.sampled_from([0, tokens]),
        "check": st.booleans(),
    }
    drawn = {name: draw(choice) for name, choice in choices.items() if name not in fixed} | dict(fixed)
    if "padding" not in fixed and draw(st.booleans()):
        rows = st.integers(0, tokens - 1)
        drawn["padding"] = draw(st.tuples(*(rows for _ in range(drawn["batch"]))))
    if "ops" not in fixed:
        drawn["ops"] = (Prefill(tokens, draw(_chunks(tokens))),)
    return Trace(**drawn)


@st.composite
def _prompts(draw: st.DrawFn, told: int) -> Prefill:
    """A prompt; of the length that the session was told of, as a rule."""
    tokens = draw(st.just(told) | st.integers(1, PROMPT) if told else st.integers(1, PROMPT))
    return Prefill(tokens, draw(_chunks(tokens)))


@st.composite
def _chunks(draw: st.DrawFn, tokens: int) -> tuple[int, ...]:
    """Whole, or as a sum of chunks."""
    cuts = sorted(draw(st.sets(st.integers(1, tokens - 1), max_size=3))) if tokens > 1 else []
    return tuple(stop - start for start, stop in pairwise([0, *cuts, tokens])) if cuts else ()


def _check_fixed(owner: str, fixed: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Trace)]
    for name in fixed:
        if name not in known:
            raise PolicyError(f"{owner}({name}={fixed[name]!r}): no size of that name; there are {', '.join(known)}.")
