"""A request in a loop of our own: the prompt, the gate, and decode steps that are stamped one by one.

Every kind of cache goes through the same loop; only the way a step is launched differs. Knows transformers, of any
version that has what it calls, and not kvpolicy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig

from benchmarks import turns
from benchmarks.models import Shape, prompt
from benchmarks.suite import Hold
from benchmarks.timing import Peak, Stamps, Times

__all__ = ["LAUNCHES", "Request", "compiled", "distance", "eager", "kv_bytes", "recorded", "served", "teacher_forced"]

CHECKED = 12  # steps that are compared with a reference, the first of which compile or record
GATE = "logits of the first batch row against its eager run alone"
NOISE = 0.15  # relative distance of bfloat16 logits that is never allowed, however far off a wrong cache would be

Step = Callable[[Tensor, Tensor], Tensor]  # tokens [B, 1] and positions [B, 1] to logits [B, 1, words]
Launch = Callable[[Any, Any, int, torch.device], Step]  # of a model, its cache, a batch size


@dataclass(frozen=True)
class Request:
    """One batch: ``prompt`` tokens, then ``before`` steps that are not timed, then ``timed`` ones.

    With ``warm`` the prompt runs once before, with another cache, so that its own time can be told.
    """

    batch: int
    prompt: int
    before: int
    timed: int
    warm: bool = False


def eager(model: Any, cache: Any, batch: int, device: torch.device) -> Step:
    """A call of the model, as generate makes it without compilation."""

    def step(token: Tensor, position: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=token, past_key_values=cache, position_ids=position, return_dict=True).logits
        return logits

    return step


def compiled(model: Any, cache: Any, batch: int, device: torch.device) -> Step:
    """What generate calls for a compilable cache: inductor with CUDA graphs; on a CPU it is only traced."""
    how = {"mode": "reduce-overhead"} if device.type == "cuda" else {"mode": "default", "backend": "eager"}
    call = model.get_compiled_call(CompileConfig(fullgraph=True, dynamic=False, **how))
    done = False

    def step(token: Tensor, position: Tensor) -> Tensor:
        nonlocal done
        torch.compiler.cudagraph_mark_step_begin()
        with contextlib.nullcontext() if done else turns.aside():
            made = call(input_ids=token, past_key_values=cache, position_ids=position, return_dict=True)
        done = True
        logits: Tensor = made.logits
        return logits

    return step


def recorded(model: Any, cache: Any, batch: int, device: torch.device) -> Step:
    """The eager step in a CUDA graph. The first three steps run eagerly, the next is recorded."""
    tokens, positions = (torch.zeros(batch, 1, dtype=torch.long, device=device) for _ in range(2))
    plain, graph, aside = eager(model, cache, batch, device), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    done, out = 0, torch.empty(0)

    def step(token: Tensor, position: Tensor) -> Tensor:
        nonlocal done, out
        tokens.copy_(token)
        positions.copy_(position)
        if done < 3:
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                logits = plain(tokens, positions)
            torch.cuda.current_stream().wait_stream(aside)
        else:
            if done == 3:
                with torch.cuda.graph(graph):
                    out = plain(tokens, positions)
            graph.replay()
            logits = out
        done += 1
        return logits

    return step


LAUNCHES: dict[str, Launch] = {"eager": eager, "CUDA graph": recorded, "compiled": compiled}


@torch.no_grad()
def teacher_forced(model: Any, cache: Any, shape: Shape, tokens: int, device: torch.device) -> Tensor:
    """Logits [CHECKED, words] of one request alone, run eagerly: its prompt is random, and so is what follows."""
    ids = prompt(shape, 1, tokens, device)
    model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    step, forced = eager(model, cache, 1, device), _forced(shape, 1, device)
    made = [step(forced[:, n : n + 1], _positions(1, tokens + n, device))[0, -1] for n in range(CHECKED)]
    return torch.stack(made)


@torch.no_grad()
def served(
    model: Any,
    shape: Shape,
    make: Callable[[], Any],
    request: Request,
    launch: Launch,
    hold: Hold,
    due: Tensor | None,
    wrong: Tensor | None,
) -> dict[str, Any]:
    """Serve a request, and time its decode steps.

    Args:
        model: the model.
        shape: its sizes.
        make: makes a fresh cache.
        request: how many tokens.
        launch: how a decode step is launched.
        hold: takes the gate.
        due: logits [CHECKED, words] that the first batch row has to give, from `teacher_forced`; None: no gate.
        wrong: the same with another cache. The gate allows half of their distance, so that it would notice.

    Returns:
        ``ms`` of a step, tokens per second while decoding, ``prefill_ms`` of one prompt, peak bytes of the prompt
        and of decoding beyond the weights, and bytes of keys and values by storage.
    """
    device = model.device
    at_rest = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    ids, stamps = prompt(shape, request.batch, request.prompt, device), Stamps(device)
    if request.warm:
        model(input_ids=ids, past_key_values=make(), logits_to_keep=1)
    cache = make()
    with Peak(device, at_rest) as prefilling:
        stamps.stamp()
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        stamps.stamp()
    try:
        with Peak(device, at_rest) as decoding:
            step = launch(model, cache, request.batch, device)
            made = _forced_steps(step, shape, request, device)
            if due is not None and wrong is not None:
                control = distance(wrong, due)
                hold(GATE, distance(made, due), min(NOISE, control / 2), wrong_cache=control)
            times = _timed_steps(step, request, device)
    finally:
        if launch is compiled:  # nothing of it is to slow down, or take memory from, the next arm
            torch._dynamo.reset()
            vars(model).pop("_compiled_call", None)
    return {
        "ms": times,
        "tokens_per_s": 1000 * request.batch / times.median,
        "prefill_ms": stamps.gaps()[0] if request.warm else None,
        "prefill_peak_bytes": prefilling.bytes,
        "decode_peak_bytes": decoding.bytes,
        "kv_bytes": kv_bytes(cache),
    }


def _forced_steps(step: Step, shape: Shape, request: Request, device: torch.device) -> Tensor:
    """Logits [CHECKED, words] of the first batch row; the first steps, in which a step is compiled or recorded."""
    forced = _forced(shape, request.batch, device)
    made = []
    for n in range(CHECKED):
        logits = step(forced[:, n : n + 1], _positions(request.batch, request.prompt + n, device))
        made.append(logits[0, -1].clone())
    return torch.stack(made)


def _timed_steps(step: Step, request: Request, device: torch.device) -> Times:
    """Greedy steps; the host waits for none of them."""
    token = torch.zeros(request.batch, 1, dtype=torch.long, device=device)
    position = _positions(request.batch, request.prompt + CHECKED, device)
    stamps = Stamps(device)
    for n in range(CHECKED, request.before + request.timed):
        if n == request.before:
            stamps.stamp()
        token = step(token, position)[:, -1].argmax(-1, keepdim=True)
        position = position + 1
        if n >= request.before:
            stamps.stamp()
    return Times.of(stamps.gaps())


def distance(got: Tensor, due: Tensor) -> float:
    """Norm of the difference relative to the norm of what is due; NaN if either is."""
    return float((got.float() - due.float()).norm() / due.float().norm())


def kv_bytes(cache: Any) -> int:
    """Bytes of the storage behind keys and values: a policy's cache reports them, others hold tensors by layer."""
    if hasattr(cache, "report"):
        reported: int = cache.report().kv_bytes
        return reported
    return sum(half.untyped_storage().nbytes() for layer in cache.layers for half in (layer.keys, layer.values))


def _forced(shape: Shape, batch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, shape.words, (1, CHECKED), generator=generator).to(device).expand(batch, CHECKED)


def _positions(batch: int, position: int, device: torch.device) -> Tensor:
    """[B, 1], contiguous like generate's."""
    return torch.full((batch, 1), position, device=device)
