"""How much to forget: a model on the way from an original to an unlearned one, chosen by held-out samples.

Paper      MCU: Improving Machine Unlearning through Mode Connectivity, 2025, arXiv:2505.10859, for the curve
           (second-hand: no figure is claimed); the straight line as in task arithmetic, Ilharco et al., ICLR 2023,
           arXiv:2212.04089

    line      w(t) = (1 - t) w_o + t w_u,   t in [0, 1]
    curve     w(t) = (1 - t)^2 w_o + 2 t (1 - t) w_c + t^2 w_u,   w_c = (w_o + w_u) / 2 at the start, then trained so
              that CE over R is low at a t drawn evenly for each batch; BatchNorm statistics lie on the line
    held-out  t with the smallest | error on F - error at the same t on held-out samples of the classes of F |, weighted
              like F; the smallest t on ties
    a number  t whose accuracy on F is closest to it; the smallest t on ties

Deviates   the paper trains the curve with a penalty on the forget set and a parameter mask; here it is fitted to R only
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from expunge.api.effect import measure_effect
from expunge.api.prepare import pick_device
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.core.seeds import global_generators
from expunge.data.split import Split
from expunge.methods.rewind import matched_error
from expunge.models.checkpoint import weights_hash
from expunge.models.modes import evaluation_mode
from expunge.training.inference import error_rate, predict


def between(
    original: Any,
    result: Result,
    *,
    target: Literal["held-out"] | float = "held-out",
    path: Literal["line", "curve"] = "line",
    points: int = 21,
    epochs: int = 2,
    lr: float = 0.01,
    seed: int = 0,
    device: str = "auto",
) -> Result:
    """The model on the path from `original` to what `unlearn` made that forgets as much as is wanted.

    Args:
        original: What was unlearned: a trained model, a result, a folder or a module.
        result: What `unlearn` returned; it knows the samples to forget, and held-out ones where there are some.
        target: "held-out" (the forget set is to be answered like unseen samples), or an accuracy on the forget set in
            [0, 1].
        path: "line", or "curve", which is trained on the retained samples first.
        points: Points of the path that are tried, both ends included, >= 2.
        epochs: Of the curve: passes over the retained samples, >= 1.
        lr: Of the curve: learning rate of SGD with momentum 0.9, > 0.
        seed: Of the curve's draws.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The result with the chosen model. `details["between"]` has t, the errors at every point, and the rule.

    Raises:
        UsageError: If the two models are of different shapes, or samples that the rule or the path needs are missing.
    """
    if not isinstance(result, Result) or result.forget is None or not result.forget.has_labels:
        raise UsageError("between needs what `unlearn` returned, with the labels of the samples that were forgotten.")
    _check_numbers(target, points, epochs, lr)
    before = as_trained(original, "original").model
    run = Run(seed=seed, device=pick_device(device), label="between")
    ends = [{k: v.detach().clone().to(run.device) for k, v in m.state_dict().items()} for m in (before, result.model)]
    shapes = [{name: value.shape for name, value in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        raise UsageError("between needs two models of the same shape: the one that was unlearned, and what came of it.")
    held_out = result.held_out
    if target == "held-out" and (held_out is None or not held_out.has_labels):
        raise UsageError('between: target="held-out" needs labelled held-out samples; unlearn a model that has some.')
    began = time.perf_counter()
    twin = copy.deepcopy(result.model).to(run.device)
    middle = _control(twin, ends, result.train, run, epochs, lr) if path == "curve" else None
    places = [i / (points - 1) for i in range(points)]
    on_forget, wanted = [], []
    for number, t in enumerate(places, 1):
        twin.load_state_dict(at(t, ends[0], ends[1], middle))
        on_forget.append(error_rate(predict(twin, result.forget, run.device), result.forget.y))
        if target == "held-out":
            assert held_out is not None  # noqa: S101  # refused above
            wanted.append(matched_error(predict(twin, held_out, run.device), held_out.y, result.forget.y))
        else:
            wanted.append(1 - float(target))
        run.report("between: points", number, points)
    best = min(range(points), key=lambda i: (abs(on_forget[i] - wanted[i]), i))
    twin.load_state_dict(at(places[best], ends[0], ends[1], middle))
    home = next((p.device for p in result.model.parameters()), torch.device("cpu"))
    model = twin.to(home).train(result.model.training)
    told = {"t": places[best], "path": path, "target": target, "forget_error": on_forget, "wanted_error": wanted}
    effect = measure_effect(
        before, model, forget=result.forget, retain=result.train, held_out=held_out, device=run.device, seed=seed
    )
    return replace(
        result,
        model=model,
        seconds=result.seconds + time.perf_counter() - began,
        facts={
            **result.facts,
            "between": {"t": places[best], "path": path, "target": target, "of": weights_hash(result.model)},
        },
        details={**result.details, "between": told},
        notes=[
            *result.notes,
            f"a point between the original and the unlearned model was taken: t = {places[best]:.3g}.",
        ],
        effect=effect,
    )


def at(
    t: float, first: Mapping[str, Tensor], last: Mapping[str, Tensor], middle: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tensors at t in [0, 1] on the line, or for names in `middle` on the curve; integers are those of the last end.

    >>> at(0.5, {"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, {"w": torch.tensor([6.0])})["w"]
    tensor([4.])
    """
    made = {}
    for name, a in first.items():
        b = last[name]
        if not a.is_floating_point():
            made[name] = b if t > 0 else a
        elif middle is not None and name in middle:
            made[name] = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle[name] + t**2 * b
        else:
            made[name] = torch.where(a == b, a, (1 - t) * a + t * b)  # equal infinities stay as they are
    return made


def _control(
    model: nn.Module, ends: list[dict[str, Tensor]], retain: Split | None, run: Run, epochs: int, lr: float
) -> dict[str, Tensor]:
    """w_c by parameter name."""
    if retain is None or not retain.has_labels:
        raise UsageError(
            "between: the curve is trained on retained samples with labels, which the result does not know."
        )
    names = [name for name, _ in model.named_parameters()]
    middle = {name: ((ends[0][name] + ends[1][name]) / 2).requires_grad_(True) for name in names}
    optimizer = torch.optim.SGD(middle.values(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(run.seed_for("t"))
    with global_generators(run.device), evaluation_mode(model):
        for epoch in range(1, epochs + 1):
            seed = run.seed_for("retain", "shuffle", epoch)
            for batch in retain.batches(128, shuffle=True, seed=seed, device=run.device):
                t = float(torch.rand((), generator=generator))
                loss = F.cross_entropy(
                    functional_call(model, at(t, ends[0], ends[1], middle), (batch.x,)).float(), batch.y
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            run.report("between: curve", epoch, epochs)
    return {name: value.detach() for name, value in middle.items()}


def _check_numbers(target: str | float, points: int, epochs: int, lr: float) -> None:
    if isinstance(target, str) and target != "held-out":
        raise UsageError(f'between: `target` is "held-out" or an accuracy in [0, 1], got {target!r}.')
    if not isinstance(target, str) and not 0 <= target <= 1:
        raise UsageError(f"between: `target` must be an accuracy in [0, 1], got {target}.")
    if points < 2 or epochs < 1 or not lr > 0:
        raise UsageError(f"between needs points >= 2, epochs >= 1 and lr > 0, got {points}, {epochs} and {lr}.")
