"""Random initial weights, which depend on a seed and neither on the global random state nor on former weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from expunge.core.errors import UsageError, unknown
from expunge.core.seeds import derive, global_generators

PLAIN_SPREAD = 0.02  # standard deviation of weights without a rule, as transformers initialise tokens and positions


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator for initial weights within the context, and restore it afterwards.

    `torch.manual_seed` would reseed every GPU as well, whose state would not be restored.
    """
    with global_generators():
        torch.default_generator.manual_seed(derive(seed, "init"))
        yield


def reset_parameters(
    model: nn.Module, names: Iterable[str] | None = None, *, seed: int = 0, any_rule: bool = False
) -> None:
    """Re-initialise weights and BatchNorm statistics in place.

    Every module's `reset_parameters` is called, inner modules first, on a CPU copy whose weights are NaN: the result
    cannot depend on the former weights, is the same on every device, and the model is not changed if this fails. Other
    buffers, such as constants, are not changed.

    Args:
        model: the model.
        names: names of the modules; None: the whole model.
        seed: of the weights.
        any_rule: whether weights that no `reset_parameters` sets (tokens and positions that a module itself owns) are
            drawn from N(0, 0.02^2).

    Raises:
        UsageError: for an unknown name and, without `any_rule`, for such weights.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    roots = [""] if names is None else list(dict.fromkeys(names))
    for root in roots:
        if root not in known:
            raise unknown("module", root, [name for name in known if name])
    twin = copy.deepcopy(model).cpu()
    parts = [(root, known[root], twin.get_submodule(root)) for root in roots]
    with torch.no_grad(), drawing(seed):
        for _, _, fresh in parts:
            for weight in fresh.parameters():
                if weight.is_floating_point() or weight.is_complex():
                    weight.fill_(torch.nan)
        for root, _, fresh in parts:
            for module in reversed(list(fresh.modules())):
                _reset(module)
            if any_rule:
                _draw_the_rest(fresh)
            _require_all_drawn(root, fresh)
        for _, target, fresh in parts:
            for old, new in zip(target.parameters(), fresh.parameters(), strict=True):
                old.copy_(new)
            for old_buffer, new_buffer in zip(target.buffers(), fresh.buffers(), strict=True):
                old_buffer.copy_(new_buffer)


def _reset(module: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):  # the second: attention and transformers of PyTorch
        rule = getattr(module, name, None)
        if callable(rule):
            rule()
            return


def _draw_the_rest(fresh: nn.Module) -> None:
    for weight in fresh.parameters():
        undrawn = torch.isnan(weight)
        if bool(undrawn.any()):
            weight.copy_(torch.where(undrawn, PLAIN_SPREAD * torch.randn(weight.shape), weight))


def _require_all_drawn(root: str, fresh: nn.Module) -> None:
    for name, weight in fresh.named_parameters():
        if bool(torch.isnan(weight).any()):
            owner, _, leaf = name.rpartition(".")
            path = ".".join(part for part in (root, owner) if part)
            kind = type(fresh.get_submodule(owner)).__name__
            raise UsageError(
                f"the weight `{leaf}` of module `{path or kind}` ({kind}) cannot be re-initialised, because no "
                "reset_parameters() of the model sets it; add that method, or pass the initial weights as initial=..."
            )
