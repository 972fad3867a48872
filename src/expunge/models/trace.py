"""Tracing of forward passes with hooks: executed modules, their inputs and outputs, weights that act after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.core.errors import UsageError
from expunge.models.modes import evaluation_mode


class _StopForward(BaseException):
    """Ends a forward pass once the representation is known; not caught by `except Exception` in a model."""


@dataclass(frozen=True)
class Representation:
    """A point of the forward pass: input (`before`) or output of the module `name` in the last of its `runs` calls."""

    name: str
    before: bool
    runs: int = 1

    def of(self, model: nn.Module, x: Tensor) -> Tensor:
        """The tensor (B, ...) at this point; the rest of the pass is skipped.

        Raises:
            UsageError: if it is not a tensor.
        """
        caught: list[Any] = []

        def catch(value: Any) -> None:
            caught.append(value)
            if len(caught) == self.runs:
                raise _StopForward

        handle = self._hook(model, catch)
        try:
            model(x)
        except _StopForward:
            pass
        finally:
            handle.remove()
        return self._tensor(caught)

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """Record the tensor during complete passes within the context; yields a function that returns the latest."""
        caught: list[Any] = []

        def catch(value: Any) -> None:
            if len(caught) >= self.runs:
                caught.clear()
            # A copy: later operations of the pass may work in place.
            caught.append(value.clone() if isinstance(value, Tensor) else value)

        handle = self._hook(model, catch)
        try:
            yield lambda: self._tensor(caught)
        finally:
            handle.remove()

    def _hook(self, model: nn.Module, catch: Callable[[Any], None]) -> RemovableHandle:
        def entering(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            catch(next((v for v in (*inputs, *named.values()) if isinstance(v, Tensor)), None))

        module = model.get_submodule(self.name)
        if self.before:
            return module.register_forward_pre_hook(entering, with_kwargs=True)
        return module.register_forward_hook(lambda _, __, output: catch(output))

    def _tensor(self, caught: list[Any]) -> Tensor:
        """The tensor of the last call."""
        if len(caught) != self.runs or not isinstance(caught[-1], Tensor):
            side = "input" if self.before else "output"
            raise UsageError(f"the {side} of module `{self.name}` is no tensor in this forward pass; name another one.")
        return caught[-1]


def logits_of(model: nn.Module, sample: Tensor) -> Tensor:
    """Logits (B, classes) of a batch; raises `UsageError` if the model fails on it or returns something else."""
    try:
        logits = model(sample)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the model does not take a batch of shape {tuple(sample.shape)} ({reason}).") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(sample):
        description = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the model must return logits (batch, classes) as one tensor, it returned {description}.")
    return logits


def execution_order(model: nn.Module, sample: Tensor) -> list[str]:
    """Names of the modules in the order in which they finished, inner before outer, one entry per call."""
    order: list[str] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(watch(name)))
        with evaluation_mode(model), torch.no_grad():
            logits_of(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return order


def weights_beyond(model: nn.Module, sample: Tensor, name: str) -> list[str]:
    """Names of the weights that act on the logits when the gradient is cut after the module `name`."""
    weights = list(model.named_parameters())
    flags = [weight.requires_grad for _, weight in weights]
    cut = model.get_submodule(name).register_forward_hook(
        lambda _, __, output: output.detach() if isinstance(output, Tensor) else output
    )
    try:
        for _, weight in weights:
            weight.requires_grad_(weight.is_floating_point() or weight.is_complex())
        with evaluation_mode(model), torch.enable_grad():
            logits = logits_of(model, sample)
            if not logits.requires_grad:
                return []
            free = [(n, w) for n, w in weights if w.requires_grad]
            grads = torch.autograd.grad(logits.sum(), [w for _, w in free], allow_unused=True)
    finally:
        cut.remove()
        for (_, weight), flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    return [n for (n, _), grad in zip(free, grads, strict=True) if grad is not None]
