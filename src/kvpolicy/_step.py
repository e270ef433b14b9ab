"""What a forward pass did, as the stages of a policy are told it.

Shapes are as in `_types`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from ._errors import UnsupportedModelError
from ._heads import UNDIVIDED, Heads
from ._namespace import along, namespace
from ._types import Array, Counts, HeadCounts, Rotate

if TYPE_CHECKING:
    from ._protocols import Backend

__all__ = ["Phase", "Queries", "Step"]


class Phase(Enum):
    """Which pipeline of a policy a forward pass belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of earlier passes that a scorer asked to keep.

    Attributes:
        vectors: [B, Hq, Q, D] after the rotary embedding.
        positions: int64 [B, Q], arrival index of each.
        valid: bool [B, Q]; False for padding.
        reach: int64 [B, Q], see `Step.query_reach`.
    """

    vectors: Array
    positions: Array
    valid: Array
    reach: Array | None = None

    @property
    def sees(self) -> Array:
        """int64 [B, Q]: the last arrival index that each query sees."""
        return self.positions if self.reach is None else self.reach

    def followed_by(self, later: Queries) -> Queries:
        """Both, in order."""
        xp = namespace(self.positions)
        return Queries(
            xp.concat([self.vectors, later.vectors], axis=2),
            xp.concat([self.positions, later.positions], axis=1),
            xp.concat([self.valid, later.valid], axis=1),
            None if self.reach is later.reach is None else xp.concat([self.sees, later.sees], axis=1),
        )

    def latest(self, count: int) -> Queries:
        """The last ``count`` valid ones of each batch row, in order; fewer if there are no more."""
        if self.positions.shape[1] <= count:
            return self
        xp = namespace(self.positions)
        order = xp.argsort(xp.where(self.valid, self.positions, xp.full_like(self.positions, -1)), axis=-1, stable=True)
        last = order[:, order.shape[1] - count :]
        return Queries(
            along(self.vectors, last[:, None, :, None], axis=2),
            along(self.positions, last, axis=1),
            along(self.valid, last, axis=1),
            None if self.reach is None else along(self.reach, last, axis=1),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What this forward pass did. Lengths are logical (tokens), never physical (rows).

    What most scorers need is `ops`, `asked` (the queries, with their positions), `scale` and `seen`. The rest is for
    stages that combine layers, heads or processes, and for models whose softmax is not the plain one.

    Attributes:
        phase: which pipeline is running.
        seen: int64 [B] (numpy), tokens seen so far by each batch row, padding not counted, this pass included.
        prompt: int64 [B] (numpy), tokens of ``seen`` that arrived in prefill passes.
        prompt_kept: int64 [B, parts * H] (numpy), rows that each head kept when the latest prompt was complete; zero
            before it. This and the other counts by head are of all heads of the layer, see ``heads``.
        queries: [B, Hq, Q, D] after the rotary embedding, this pass only.
        query_positions: int64 [B, Q], arrival index of each query.
        query_valid: bool [B, Q]; False for padding.
        scale: the softmax scale that the model itself used.
        ops: the backend of these arrays.
        row_bytes: bytes that one row per layer and head costs over the whole request (all layers, heads, batch rows, on
            all processes).
        count_bias: whether the model attends with ``+ log(count)`` on every logit (`Policy.count_bias`).
        held: int64 [B, parts * H] (numpy) for every layer: valid rows of each head. A layer that has not run in this
            pass yet stands as it was before it.
        prompt_quota: int64 [B, parts * H] (numpy) for every layer: the quotas of the latest prefill plan; zero without
            one.
        earlier: the queries before this pass, as many as a `Windowed` scorer asked for.
        rotate: turns rotary vectors by a number of positions; None where the caller gave no rotary embedding. An
            adapter gives it where positions are re-indexed or a stage says ``needs_rotate = True``.
        module: the attention module that ran, where an adapter gave it.
        length: tokens that have passed, padding included.
        whole_pass: whether the queries are exactly those of this pass, whose rows then end the table in order.
        query_reach: int64 [B, Q], the last arrival index that each query sees, where that may be later than its own
            (tokens of an image that see each other); None: its own.
        softcap: the model attends with ``softcap * tanh(logit / softcap)``, before any ``log(count)``; None: uncapped.
        sinks: floating [Hq], for each query head a logit that takes part in every softmax and belongs to no row; None:
            every softmax is over rows alone.
        archived: int64 [B, parts * H] (numpy) for every layer: rows of each head that are in the archive.
        heads: the heads of a layer, of which this process may hold a share. A stage that combines heads combines
            ``heads.all(data)``, and takes its own part of host counts with ``heads.own(counts)``.
        surplus: the most rows that any head of the layer has to give up in this plan (held - quota, at least 0), where
            the host knows it. A selector that asks another one for a smaller quota takes it away: ``surplus=None``.
        shares: floating [B, H, S], where the attention of this pass, of one query a batch row, has told what share each
            row received: the mean over the query heads that share a key/value head.
        log_sums: floating [B, Hq, Q], where the attention of this pass has told them: the natural logarithm of what the
            softmax of each query divides by. Of queries that see nothing it may be anything.
    """

    phase: Phase
    seen: Counts
    prompt: Counts
    prompt_kept: HeadCounts
    queries: Array
    query_positions: Array
    query_valid: Array
    scale: float
    ops: Backend
    row_bytes: int = 0
    count_bias: bool = False
    held: tuple[HeadCounts, ...] = ()
    prompt_quota: tuple[HeadCounts, ...] = ()
    earlier: Queries | None = None
    rotate: Rotate | None = None
    module: object = None
    length: int = 0
    whole_pass: bool = True
    query_reach: Array | None = None
    softcap: float | None = None
    sinks: Array | None = None
    archived: tuple[HeadCounts, ...] = ()
    heads: Heads = field(default_factory=lambda: UNDIVIDED)  # torch 2.11 cannot compile what has an object as default
    surplus: int | None = None
    shares: Array | None = None
    log_sums: Array | None = None

    @property
    def padding(self) -> Counts:
        """int64 [B] (numpy): padding that has passed. On the left, ``position - padding`` counts a row's own tokens."""
        return self.length - self.seen

    @property
    def asked(self) -> Queries:
        """The queries of this step, with all that is known of each."""
        return Queries(self.queries, self.query_positions, self.query_valid, self.query_reach)

    def require_uncapped(self, needed_by: str) -> None:
        """For a stage that reasons with logits as the products of queries and keys.

        Raises:
            UnsupportedModelError: if the model caps its logits; names the stage and the cap.
        """
        if self.softcap is not None:
            raise UnsupportedModelError(
                f"{needed_by} takes logits for products of queries and keys, and this model caps them "
                f"(softcap={self.softcap}). Hint: a stage that goes by attention or by keys, such as AttentionMass."
            )

    def latest(self, count: int) -> Step:
        """The same step with the last ``count`` valid queries of each batch row, those of earlier passes included."""
        if self.earlier is None and self.query_positions.shape[1] <= count:
            return replace(self, whole_pass=False)
        asked = self.asked
        if self.earlier is not None:
            asked = self.earlier.followed_by(asked)
        asked = asked.latest(count)
        return replace(
            self,
            queries=asked.vectors,
            query_positions=asked.positions,
            query_valid=asked.valid,
            query_reach=asked.reach,
            earlier=None,
            whole_pass=False,
            shares=None,
            log_sums=None,
        )
