"""Pictures of what policies keep of one prompt, for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from PIL.Image import Image

from kvpolicy import KVPolicyError

from .._transformers import as_argument
from ..cache import PolicyCache
from ..plots import History, Layout, PlotError, Watch, patches, seen_by_model, tokens_by_layers
from .arms import FULL, Arm
from .subject import Subject
from .task import Sample
from .texts import at_text

__all__ = ["MOST", "draw_retained"]

MOST = 4  # arms that are drawn
DOTS = 110  # an inch: a picture of some 200 kB


def draw_retained(subject: Subject, name: str, sample: Sample, arms: Sequence[Arm]) -> list[tuple[str, bytes]]:
    """What the first arms keep of a prompt at their smallest budget, as captions and PNGs.

    Where the prompt has one picture, its patches are drawn; otherwise its tokens.

    Args:
        subject: the model.
        name: of the sample, for captions.
        sample: whose prompt is run once for each arm that is drawn.
        arms: those that come first are drawn, up to `MOST`; one that refuses the model or the prompt is passed over.
    """
    drawn = []
    for arm in smallest(arms)[:MOST]:
        try:
            figure = _drawn(subject, sample, arm)
        except KVPolicyError:
            continue
        drawn.append((f"What {arm.label} {at_text(arm.keep)} leaves of {name}, layer by layer", _png(figure)))
    return drawn


def smallest(arms: Sequence[Arm]) -> list[Arm]:
    """Each policy at its smallest budget, without the full cache."""
    least: dict[str, Arm] = {}
    for arm in arms:
        known = least.get(arm.label)
        if arm != FULL and (known is None or (arm.keep or 1.0) < (known.keep or 1.0)):
            least[arm.label] = arm
    return list(least.values())


@torch.inference_mode()
def _drawn(subject: Subject, sample: Sample, arm: Arm) -> Figure:
    inputs, watch = subject.encode([sample.parts]), Watch()
    cache = PolicyCache(subject.model, arm.policy, inputs=inputs, listen=watch)
    subject.model.generate(**inputs, **as_argument(cache), generation_config=subject.greedy(1))
    history: History = watch.history(cache.report())
    title = f"{arm.label} {at_text(arm.keep)}"
    pictures = [part for part in sample.parts if isinstance(part, Image)]
    if len(pictures) == 1:
        try:
            layout = Layout.of(inputs, subject.model, subject.tokenizer)
        except PlotError:  # its patches form no grid
            pass
        else:
            image = seen_by_model(inputs, subject.processor, pictures[0])
            return patches(history, layout, image, after=layout.tokens, title=title)
    words = [subject.tokenizer.decode([token]) for token in inputs["input_ids"][0].tolist()]
    return tokens_by_layers(history, words, title=title)


def _png(figure: Figure) -> bytes:
    """On the picture's own ground, which is dark."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS)
    return drawn.getvalue()
