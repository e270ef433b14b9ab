"""A scorer of one's own, held against the recipes on the demo's questions: how many answers are right?

    python examples/02_own_scorer.py [--keep 0.2] [--pictures 3] [--seed 0]

The questions are about two kinds of pictures: grids, where every image token matters, and photographs, where few do.
"""

import argparse
from dataclasses import dataclass

from kvpolicy import (
    CacheView,
    KeepRatio,
    Pipeline,
    Policy,
    Scores,
    Step,
    TopK,
    catalogue,
)
from kvpolicy_hf import enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.results import run_case
from kvpolicy_hf.loading import load_model


@dataclass(frozen=True)
class LoudValues:
    """Keep rows whose values are loud: they move the output most when attended to."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step) -> Scores:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power


def loud_values(keep: float) -> Policy:
    """As H2O, with the scorer replaced: half of the budget for recent rows, the rest for the loudest."""
    pipeline = Pipeline(schedule=KeepRatio(keep), score=LoudValues(), select=TopK(recent=0.5))
    return Policy(prefill=pipeline, decode=pipeline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.2, help="share of the cache that each policy may keep")
    parser.add_argument("--pictures", type=int, default=3, help="pictures of each kind, four questions each")
    parser.add_argument("--seed", type=int, default=0, help="draws pictures and questions")
    options = parser.parse_args()

    policies = {**catalogue(keep=options.keep), "LoudValues": loud_values(options.keep)}
    model, processor = load_model("demo")
    enable(model)
    cases = drawn_cases(options.seed, pictures=options.pictures)
    results = [run_case(case, model, processor, policies, max_new_tokens=10) for case in cases]

    kinds = sorted({case.kind for case in cases})
    print(f"{'':<20}" + "".join(f"{kind:>10}" for kind in kinds))
    for name in policies:
        right = [[result.is_right(name) for result in results if result.case.kind == kind] for kind in kinds]
        print(f"{name:<20}" + "".join(f"{sum(part):>7}/{len(part)}" for part in right))


if __name__ == "__main__":
    main()
