from __future__ import annotations

from dataclasses import replace

import kvpolicy
from kvpolicy_hf.simulate import replay

from ..prompts import Samples, mean

RELEASED = """
No official code: the authors' repository has only a README. The trained controller was not published either.
"""
CHOSEN = """
The mechanism: release, an archive in host memory, recall of the best R rows at every step, and a controller that
can be exchanged. In the paper a recalled row serves the step that recalls it, by a second small forward pass; here
it serves from the next step on (decision [0013](decisions/0013-recall.md)). The default controller is a moving
average of attention, which is ours.
"""
MEASURED = """
The paper's choice of rows is not measured: there is no controller to compare with. What recall does with the
default controller, at `keep={keep:g}`, {layers:.0f} layers of SmolLM2, {steps:.0f} decode steps: {returned:.2f}
rows of a head return at each step; attention kept {recalled:.1%} with recall and {released:.1%} without, output
error {recalled_error:.3f} and {released_error:.3f}.
"""

KEEP, LAYERS = 0.2, 10


def measure(samples: Samples) -> dict[str, float]:
    prompt = samples.texts[0].some_layers(LAYERS)
    policy = kvpolicy.adore(keep=KEEP)
    assert policy.prefill is not None
    without = replace(policy.prefill, recall=None)
    one, other = replay(prompt.record, policy), replay(prompt.record, replace(policy, prefill=without, decode=without))
    heads = prompt.layers * prompt.heads[0]
    return {
        "keep": KEEP,
        "layers": prompt.layers,
        "steps": prompt.record.steps,
        "returned": one.report.recalled / heads / prompt.record.steps,
        "recalled": mean(one.mass.ravel()),
        "released": mean(other.mass.ravel()),
        "recalled_error": mean(one.error.ravel()),
        "released_error": mean(other.error.ravel()),
    }
