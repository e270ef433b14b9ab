"""What must not matter: slots, heads, other batch rows, padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .._law import ARRAYS, MERGERS, STAGES, law
from .._outcome import Outcome, compare, fail
from .._scene import Scene
from .._subject import Example, Subject
from ..tables import Table

__all__ = ["batch_independent", "head_equivariant", "head_independent", "padding_invariant", "slot_equivariant"]

_CLOSE = 1e-9  # sums are taken in another order


@law(*ARRAYS, after=("dominance", "head_independent"), least={"tokens": 5})
def slot_equivariant(subject: Subject, example: Example) -> None:
    """f(x[pi]) = f(x)[pi] for slots in any order pi: rows carry no order, positions do; ties do not go by memory."""
    assert isinstance(example, Table)
    if example.now == example.tokens:  # a fresh prompt lies in order; a while later it does not
        example = replace(example, now=1, shuffled=True, evicted=0.2)
    if subject.kind.name in MERGERS:  # something stays, and something leaves
        example = replace(example, quota=example.tokens // 2)
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    got = subject.run(scene.reslotted(example.seed))
    compare(got, subject.run(scene), what="the same rows in other slots", tolerance=_CLOSE)


@law(*ARRAYS, "Policy", least={"heads": 2})
def head_equivariant(subject: Subject, example: Example) -> None:
    """f(x[:, pi]) = f(x)[:, pi] for heads in any order pi: no head is a special one.

    Of an allocator's quotas, to one row: of two equal heads only one can get an odd row.
    """
    heads, arrays = example.heads, subject.arrays(example)
    order = np.random.default_rng([example.seed, 4]).permutation(heads).tolist()
    if order == sorted(order):
        order.reverse()
    due = {place._replace(head=order.index(place.head)): r for place, r in subject.run(arrays).items()}
    got = subject.run(arrays.with_heads(order))
    if subject.kind.name == "Allocator":
        for place in got:
            if abs(got[place]["quota"] - due[place]["quota"]) > 1:
                fail(place, f"its quota is {got[place]['quota']}; elsewhere the same head gets {due[place]['quota']}.")
        return
    compare(got, due, what="the same head elsewhere", tolerance=_CLOSE)


@law(*MERGERS, "Backend", least={"heads": 2})
def head_independent(subject: Subject, example: Example) -> None:
    """f(x)[:, h] = f(x[:, h]): what becomes of a head's rows depends on that head alone."""
    scene = subject.arrays(example)
    assert isinstance(scene, Scene)
    whole = subject.run(scene)
    for h in range(example.heads):
        due = {place._replace(head=h): record for place, record in subject.run(scene.with_heads([h])).items()}
        compare(_only(whole, head=h), due, what="the head by itself", tolerance=_CLOSE)


@law(*STAGES, "Policy", "Backend", after=("merge_convex", "padding_invariant"), least={"batch": 2})
def batch_independent(subject: Subject, example: Example) -> None:
    """f(x)[b] = f(x[b]): a row of a left-padded batch gets what it gets alone, without its padding."""
    arrays = subject.arrays(example)
    whole = subject.run(arrays)
    for b in range(example.batch):
        due = {place._replace(batch_row=b): record for place, record in subject.run(arrays.alone(b)).items()}
        got = _only(whole, batch_row=b)
        compare(got, due, what="the same batch row alone", tolerance=_CLOSE)


@law(*STAGES, "Policy", "Backend", after=("dominance", "merge_mass", "slot_equivariant"))
def padding_invariant(subject: Subject, example: Example) -> None:
    """f(pad(x)) = f(x): more padding on the left, and empty slots, whatever they hold, change nothing."""
    arrays = subject.arrays(example)
    more = 3 + example.seed % 3  # so that a share of the tokens, rounded down, is most often another with it
    got = subject.run(arrays.padded(more, example.seed))
    compare(got, subject.run(arrays), what=f"the same tokens with {more} fewer tokens of padding", tolerance=_CLOSE)


def _only(outcome: Outcome, **here: int) -> Outcome:
    """The part of an outcome where a place has these numbers."""
    return {place: record for place, record in outcome.items() if place._replace(**here) == place}
