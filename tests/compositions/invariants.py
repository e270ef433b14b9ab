"""What must hold of every policy on every model: no padding, exact books, budgets, protected rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kvpolicy import IMAGE, TEXT, Ahead, CacheView, FixedRows, KeepRatio, Phase, Plan, Policy, Step, TopK, Uniform
from kvpolicy_hf import PolicyCache

__all__ = ["assert_books", "assert_plan"]


def assert_plan(policy: Policy, view: CacheView, plan: Plan, step: Step) -> None:
    """One plan keeps no padding and all protected rows, and its weights are numbers."""
    pipeline = policy.prefill if step.phase is Phase.PREFILL else policy.decode
    assert pipeline is not None
    assert not bool((plan.keep & ~view.valid).any()), "padding is kept"
    select = pipeline.select
    if isinstance(select, TopK) and select.first:
        oldest = torch.where(view.valid, view.positions, 10**9).argmin(-1, keepdim=True)
        assert bool(plan.keep.gather(-1, oldest).all()), "the first row is protected"
    if isinstance(select, TopK) and select.text:
        segment = view.columns["segment"].data
        image = (view.valid & (segment == IMAGE)).any(-1, keepdim=True).any(1, keepdim=True)
        assert bool((plan.keep | ~(view.valid & (segment == TEXT) & image)).all()), "text is protected"
    if plan.into is not None:
        goes = plan.into >= 0
        assert not bool((goes.any(-1) & (plan.keep | ~view.valid)).any()), "only rows that leave fold"
        assert bool(torch.isfinite(torch.where(goes, plan.weight, 0.0)).all())
        assert bool(torch.isfinite(torch.where(plan.keep, plan.self_weight, 1.0)).all())


def assert_books(policy: Policy, cache: PolicyCache, inputs: Mapping[str, Tensor], new: int) -> None:
    """After ``new`` tokens every token is accounted for once, and storage is what the report says."""
    report, layers = cache.report(), cache.session._layers
    tokens = np.array(report.tokens)
    assert tokens.tolist() == [int(valid) + new - 1 for valid in inputs["attention_mask"].sum(-1)]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + new - 1, "the next position is the tokens seen"
    held, heads = 0, 0
    for state, layer in zip(layers, report.layers, strict=True):
        view = state.store.view()
        valid = view.valid
        held, heads = held + int(valid.sum()), heads + valid.shape[1]
        assert np.array_equal(valid.sum(-1).cpu().numpy(), state.held)
        for vectors in (view.keys, view.values):
            assert bool(torch.isfinite(vectors.masked_fill(~valid[..., None], 0)).all())
        stands_for = torch.where(valid, view.columns["count"].data, 0.0).sum(-1)
        most = torch.as_tensor(tokens, device=valid.device)[:, None].expand_as(stands_for)
        assert bool((stands_for <= most + 1e-3).all()), "a row cannot stand for tokens that never were"
        if layer.evicted == 0 and state.archive is None:
            assert torch.allclose(stands_for, most.float(), atol=1e-3), "counts add up to the tokens"
        for head in torch.where(valid, view.positions, -1).flatten(0, 1):
            there = head[head >= 0]
            assert len(there.unique()) == len(there), "no token is there twice"
        if state.archive is not None and state.archived.any():
            archive = state.archive.view()
            assert archive.keys.device.type == "cpu"
            assert np.array_equal(archive.valid.sum(-1).cpu().numpy(), state.archived)
    assert held + report.evicted + report.merged == int(tokens.sum()) * heads, "a token got lost, or counted twice"
    if policy.decode is not None:
        _assert_budget(policy, cache, tokens)


def _assert_budget(policy: Policy, cache: PolicyCache, tokens: np.ndarray) -> None:
    assert policy.decode is not None
    schedule, allocate = policy.decode.schedule, policy.decode.allocate
    if isinstance(schedule, KeepRatio):
        budget = np.maximum(np.rint(schedule.keep * tokens), 1).astype(int)
    elif isinstance(schedule, FixedRows):
        budget = np.full(len(tokens), schedule.rows)
    else:
        return
    layers = cache.session._layers
    due = budget * sum(state.held.shape[1] for state in layers)
    total = np.sum([state.held.sum(axis=1) for state in layers], axis=0)
    exceeded = sum(state.exceeded.sum() for state in layers)
    assert total.sum() <= due.sum() + exceeded
    if exceeded == 0:
        assert np.all(total <= due)
        shared = getattr(allocate, "layers", allocate)
        if not isinstance(shared, Ahead) or shared == Uniform():  # others may give a layer more than it holds
            assert np.array_equal(total, np.minimum(due, tokens * due // budget)), "the budget is met exactly"
