from dataclasses import dataclass

from kvpolicy import Array, Plan, Scored, Selection, Step


@dataclass(frozen=True)
class NeighbourMean:
    """A row that leaves joins the kept row nearest by position, if that is at most ``window`` tokens away.

    The merged row is the mean over the tokens that it then stands for.
    """

    window: int = 4

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        into, kept = neighbours(scored, selection, step, self.window)
        view, xp = scored.view, scored.view.xp
        count = view.column("count", needed_by="NeighbourMean")
        joins = xp.where(into >= 0, count[..., None], xp.zeros_like(count)[..., None])
        total = xp.where(selection.keep, count, xp.ones_like(count)) + step.ops.segment_sum(joins, into)
        weight = joins / xp.take_along_axis(total, kept, axis=-1)[..., None]
        return Plan(keep=selection.keep, into=into, weight=weight, self_weight=count / total)


@dataclass(frozen=True)
class AddValues:
    """The value of a row that leaves is added to that of its neighbour. The sum is no mean: it breaks merge_convex."""

    window: int = 4

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        into, _ = neighbours(scored, selection, step, self.window)
        one = scored.view.xp.ones_like(scored.view.column("count", needed_by="AddValues"))
        return Plan(keep=selection.keep, into=into, weight=one[..., None], self_weight=one, merge_keys=False)


def neighbours(scored: Scored, selection: Selection, step: Step, window: int) -> tuple[Array, Array]:
    """Where each row goes, [B, H, S, 1], -1 for nowhere; and the nearest kept row, [B, H, S], 0 where there is none."""
    view, xp = scored.view, scored.view.xp
    near = step.ops.nearest_position(view, selection.keep)
    kept = xp.maximum(near, xp.zeros_like(near))
    apart = xp.abs(view.positions - xp.take_along_axis(view.positions, kept, axis=-1))
    joins = view.valid & ~selection.keep & (near >= 0) & (apart <= window)
    return xp.where(joins, near, xp.full_like(near, -1))[..., None], kept
