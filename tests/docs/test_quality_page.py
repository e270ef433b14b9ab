"""The page of quality is what its script makes of the committed rows, and a verdict is what an interval says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from pages import script

pl = pytest.importorskip("polars")


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    with script("quality") as module:
        yield module


def test_the_page_is_what_the_rows_say(quality: ModuleType) -> None:
    found = quality.runs()
    assert set(found) == set(quality.TITLES), "python -m scripts.measure_quality"
    assert quality.rendered(found) == quality.PAGE.read_text(encoding="utf-8"), "out of date: python -m scripts.quality"
    for name in found:
        assert (quality.PICTURES / f"{name}.png").exists()


def rows_of(quality: ModuleType, **means: float) -> pl.DataFrame:
    """Rows of one task whose quality is these means, but for noise that all policies share."""
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    like = next(iter(quality.runs().values())).rows.head(1)
    parts = []
    for policy, mean in (("full", 1.0), *means.items()):
        keep = 1.0 if policy == "full" else 0.2
        rows = [{"sample": n, "quality": mean + float(noise[n])} for n in range(40)]
        told = pl.DataFrame(rows).with_columns(policy=pl.lit(policy), keep=pl.lit(keep), task=pl.lit("made"))
        told = told.with_columns(group=pl.col("sample").cast(pl.String))
        others = like.drop(told.columns)
        parts.append(told.join(others, how="cross").select(like.columns).cast(dict(like.schema)))
    return pl.concat(parts)


def test_a_claim_holds_or_not_by_the_interval(quality: ModuleType) -> None:
    about = {"date": "2026-01-01"}
    rows = rows_of(quality, elastic_cache=0.4, h2o=0.6, streaming_llm=0.3)
    said = quality.orderings(quality.Run(rows, about)).splitlines()
    h2o, local = (next(line for line in said if f"against `{name}`" in line) for name in ("h2o", "streaming_llm"))
    assert h2o.endswith("| 0.2: -0.200 [-0.200, -0.200], **reversed** |")
    assert local.endswith("| 0.2: +0.100 [+0.100, +0.100], holds |")
    assert quality.orderings(quality.Run(rows.filter(pl.col("policy") != "elastic_cache"), about)) == ""


def test_an_ordering_by_rouge_goes_by_rouge(quality: ModuleType) -> None:
    about = {"date": "2026-01-01"}
    rows = rows_of(quality, elastic_cache=0.4, h2o=0.6)
    by_rouge = quality.MEASURES[1]
    assert quality.orderings(quality.Run(rows.with_columns(rouge=pl.lit(None, pl.Float64)), about), by_rouge) == ""
    other = rows.with_columns(rouge=1 - pl.col("quality"))
    (line,) = (x for x in quality.orderings(quality.Run(other, about), by_rouge).splitlines() if "`h2o`" in x)
    assert line.endswith("| 0.2: +0.200 [+0.200, +0.200], holds |")
