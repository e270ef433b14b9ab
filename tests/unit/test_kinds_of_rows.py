"""Stages that treat images apart ask whether a row is text: a video or a sound is no text either."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from driving import drive, make_request

from kvpolicy import AUDIO, IMAGE, TEXT, VIDEO, Policy, air_cache, look_m, vl_cache


def kept(policy: Policy, kind: int, backend: str) -> list[Any]:
    """Which rows are there after each pass, if some tokens of the prompt are of a kind."""
    request = make_request(seed=5, prompt=16, steps=3)
    token = np.arange(request.tokens)
    request = replace(request, segment=np.where((token >= 3) & (token < 10), kind, TEXT)[None])
    passes = drive(policy, request, backend=backend).passes
    return [[[table.positions for table in row] for row in layer] for step in passes for layer in step.tables]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", [VIDEO, AUDIO])
@pytest.mark.parametrize("policy", [look_m(keep=0.4), vl_cache(keep=0.4), air_cache(keep=0.4)], ids=repr)
def test_a_video_is_treated_as_an_image(policy: Policy, kind: int, backend: str) -> None:
    assert kept(policy, kind, backend) == kept(policy, IMAGE, backend) != kept(policy, TEXT, backend)
