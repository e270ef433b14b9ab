"""The strategies reach every edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import kvpolicy as kv
from kvpolicy.testing import Request, Table, strategies


@cache
def drawn(name: str, number: int = 400) -> list[Any]:
    """The same examples every time."""
    found: list[Any] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(getattr(strategies, name)())
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


class TestStrategies:
    @pytest.mark.parametrize(
        ("edge", "reached"),
        [
            ("one token", lambda t: t.tokens == 1),
            ("one of everything", lambda t: {t.layers, t.batch, t.heads, t.groups, t.value_dim} == {1}),
            ("shared keys", lambda t: t.heads > 1 and t.groups > 1),
            ("padding", lambda t: len(set(t.padding)) > 1),
            ("all padding but one", lambda t: t.tokens > 2 and t.tokens - 1 in t.padding),
            ("a prompt", lambda t: t.now == t.tokens > 3),
            ("a turn", lambda t: 1 < t.now < t.tokens and t.phase == "prefill"),
            ("decoding", lambda t: t.phase == "decode" and t.evicted > 0),
            ("other slots", lambda t: t.shuffled),
            ("empty slots", lambda t: t.empty > 1),
            ("merged rows", lambda t: t.merged),
            ("an image", lambda t: 0 < t.image[0] < t.image[1] < t.tokens),
            ("no rows", lambda t: t.quota == 0),
            ("a row too many", lambda t: t.quota == t.tokens + 1),
            ("just enough", lambda t: t.quota == t.tokens > 1),
            ("another quota for each", lambda t: t.quota is None),
            ("fewer than there are", lambda t: t.evicted == 0 and 1 < (t.quota or 0) < t.tokens - max(t.left)),
        ],
    )
    def test_tables_reach_every_edge(self, edge: str, reached: Callable[[Table], bool]) -> None:
        assert any(map(reached, drawn("tables"))), edge

    @pytest.mark.parametrize("name", ["vectors", "scores"])
    def test_tables_have_all_kinds_of_numbers(self, name: str) -> None:
        from kvpolicy.testing.tables import SCORES, VECTORS

        kinds = Counter(getattr(table, name) for table in drawn("tables"))
        assert set(kinds) == set({"vectors": VECTORS, "scores": SCORES}[name])

    @pytest.mark.parametrize(
        ("edge", "reached"),
        [
            ("one token", lambda r: r.prompt == 1),
            ("one of everything", lambda r: {r.layers, r.batch, r.heads, r.groups, r.value_dim} == {1}),
            ("shared keys", lambda r: r.heads > 1 and r.groups > 1),
            ("padding", lambda r: len(set(r.padding)) > 1),
            ("no decoding", lambda r: r.steps == 0),
            ("decoding", lambda r: r.steps == 3),
            ("a turn", lambda r: r.turn > 0 and r.steps > 0),
            ("an image", lambda r: 0 < r.image[0] < r.image[1]),
        ],
    )
    def test_requests_reach_every_edge(self, edge: str, reached: Callable[[Request], bool]) -> None:
        assert any(map(reached, drawn("requests"))), edge

    @given(st.data(), st.integers(2, 3))
    def test_sizes_are_kept(self, data: st.DataObject, heads: int) -> None:
        table = data.draw(strategies.tables(least={"batch": 2, "heads": heads}, tokens=4, dim=2))
        assert (table.tokens, table.dim) == (4, 2)
        assert table.batch >= 2
        assert table.heads >= heads
        request = data.draw(strategies.requests(least={"steps": 1}, heads=heads))
        assert request.heads == heads
        assert request.steps >= 1

    @given(strategies.dtypes(), strategies.segments(5), strategies.budgets(5))
    def test_parts(self, dtype: str, image: tuple[int, int], budget: int | None) -> None:
        assert dtype in ("float64", "float32", "float16", "bfloat16")
        assert 0 <= image[0] <= image[1] <= 5
        assert budget is None or 0 <= budget <= 6

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_arrays_for_tests_of_a_users_own(self, backend: str) -> None:
        @settings(max_examples=5, database=None, derandomize=True, phases=(Phase.generate,))
        @given(strategies.steps(backend=backend, heads=2), strategies.caches(backend=backend, tokens=3))
        def look(given_: tuple[kv.Scored, kv.Step], view: kv.CacheView) -> None:
            scored, step = given_
            assert step.ops.name == backend
            assert tuple(scored.scores.shape) == scored.view.shape
            assert scored.view.shape[1] == 2
            assert type(view.keys).__module__ == backend

        look()
