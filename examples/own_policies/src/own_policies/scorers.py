from dataclasses import dataclass

from kvpolicy import CacheView, Scores, Step


@dataclass(frozen=True)
class LoudValues:
    """Keep rows whose values are loud: they move the output most when attended to."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step) -> Scores:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power
