"""Requirements on models: an eager PyTorch module that maps a batch to logits (B, classes), in eval and train mode.

Networks that return more (auxiliary heads, dictionaries, `ModelOutput`) or less (one logit for two classes) are wrapped
in an adapter; modules that cannot be trained (TorchScript, quantised weights) are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import global_generators
from expunge.models.modes import evaluation_mode, lone_samples

_OUTPUT_KEYS = ("logits", "out", "output", "outputs", "prediction", "predictions")
"""Names under which networks return their logits, the most common first."""

_VIEWS = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Clone", "Alias", "Expand", "T")
"""Autograd nodes that only reshape the result of the node before them."""


class Adapted(nn.Module):
    """Adapter of a network whose outputs are not logits (B, classes).

    Its state dict is that of the network, so weight files and hashes are independent of the adapter.

    Args:
        net: the network.
        remarks: how its outputs are interpreted, for the user.
        copies_input: whether it changes its input in place, and so needs a copy.
        probability: whether its single output is P(class 1) instead of a logit.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        remarks: Sequence[str] = (),
        copies_input: bool = False,
        probability: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.remarks = tuple(remarks)
        self.copies_input = copies_input
        self.probability = probability
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of inputs (B, *shape)."""
        return two_logits(first_tensor(self.net(x.clone() if self.copies_input else x)), self.probability)

    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        """The state dict of the network."""
        return self.net.state_dict(*args, **keywords)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict with the names of the network, or with those of the adapter (prefix `net.`)."""
        own = self.net.state_dict().keys()
        if not state_dict.keys() & own and all(name.startswith("net.") for name in state_dict):
            state_dict = {name.removeprefix("net."): value for name, value in state_dict.items()}
        return self.net.load_state_dict(state_dict, strict=strict, assign=assign)


def adapted(model: nn.Module, x: Tensor, *, trains: bool) -> tuple[nn.Module, list[str]]:
    """Wrap a model in an adapter if it does not return logits.

    Args:
        model: the model.
        x: a batch (B, *shape).
        trains: whether train mode is checked too, on a copy, because many networks return more there.

    Returns:
        The model or its adapter, and remarks for the user.

    Raises:
        DataError: if the outputs cannot be interpreted as logits.
        UsageError: if the model cannot be copied.
    """
    if isinstance(model, Adapted):
        return model, list(model.remarks)
    given = x.clone()
    with evaluation_mode(model), torch.no_grad():
        outputs = [model(given)]
    changes_input = not torch.equal(given, x)
    if trains:
        outputs.append(_in_train_mode(model, x))
    form = next((_form(output) for output in outputs if _form(output)), "")
    single = any(_columns(first_tensor(output)) == 1 for output in outputs)
    last = _last_operation(model, x) if single or _may_be_probabilities(outputs[0]) else ""
    probability = single and last == "sigmoid"
    read = [two_logits(first_tensor(output), probability) for output in outputs]
    for output, logits in zip(outputs, read, strict=True):
        fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(x)
        if not fits or logits.shape != read[0].shape:
            raise DataError(f"the model must return logits of shape (batch, classes), got {_described(output)}.")
    remarks = []
    if form:
        where = "" if _form(outputs[0]) else " in train mode"
        remarks.append(f"the model returns {form}{where}; its logits are used, the rest is not trained on.")
    if single:
        what = "probability" if probability else "logit"
        remarks.append(f"the model has one output, read as the {what} of the second of two classes.")
    elif last:
        remarks.append(
            f"the model's outputs are probabilities (it ends in a {last}); losses and attacks expect logits: remove "
            "that layer, unless the model was trained with it."
        )
    if not (form or single or changes_input or any(output.dim() != 2 for output in outputs)):
        return model, remarks
    return Adapted(model, remarks=remarks, copies_input=changes_input, probability=probability), remarks


def returned(result: nn.Module, given: nn.Module) -> nn.Module:
    """The result without its adapter, if the model that the user gave had none."""
    return result.net if isinstance(result, Adapted) and not isinstance(given, Adapted) else result


def parameter_names(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict of the model under the names used by `named_parameters` and `get_submodule`."""
    return {f"net.{name}": value for name, value in state.items()} if isinstance(model, Adapted) else state


def inside(model: Adapted, name: str) -> str:
    """Name within the adapter of a module of the network."""
    known = dict(model.named_modules())
    return f"net.{name}" if name not in known and f"net.{name}" in known else name


def first_tensor(output: Any) -> Any:
    """The logits in a network's output: by name, else the first of a tuple; other outputs are returned unchanged."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            tensors = [value for value in output.values() if isinstance(value, Tensor)]
            named = next((output[key] for key in _OUTPUT_KEYS if key in output), None)
            inner = named if named is not None else tensors[0] if len(tensors) == 1 else None
        elif isinstance(getattr(output, "logits", None), Tensor):
            inner = output.logits
        elif isinstance(output, tuple | list) and output:
            inner = output[0]
        else:
            inner = None
        if inner is None:
            return output
        output = inner
    return output


def two_logits(output: Any, probability: bool = False) -> Any:
    """Logits (B, C) of outputs (B, C), (B, C, 1, 1), (B, 1) or (B,); one logit z stands for the two logits (0, z).

    softmax((0, z)) = (1 - sigmoid(z), sigmoid(z)), so cross-entropy on them is the binary cross-entropy of z.
    """
    if not isinstance(output, Tensor):
        return output
    if output.dim() > 2 and output[0, 0].numel() == 1:
        output = output.flatten(1)
    if _columns(output) != 1:
        return output
    z = output.reshape(-1, 1)
    if probability:
        p = z.clamp(torch.finfo(z.dtype).eps, 1 - torch.finfo(z.dtype).eps)
        return torch.cat([(1 - p).log(), p.log()], dim=1)
    return torch.cat([torch.zeros_like(z), z], dim=1)


def plain_module(model: nn.Module, what: str = "model") -> nn.Module:
    """The network inside DataParallel, DDP or `torch.compile`; `UsageError` for modules that cannot be trained."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, module in model.named_modules():
        kind = _foreign_kind(module)
        if kind is not None:
            where = f" (module `{name}`)" if name else ""
            raise UsageError(f"the {what} is {kind}{where}; pass the eager float32 network from which it was made.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise UsageError(
                f"the {what} has a lazy layer whose `{name}` has no shape yet; run a batch through it first: model(x)."
            )
        if tensor.is_meta:
            raise UsageError(f"the {what}'s `{name}` is on the meta device and has no values; load its weights first.")
        if tensor.is_quantized or (isinstance(tensor, nn.Parameter) and not _trainable_type(tensor)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(f"the {what}'s weight `{name}` is {kind}; pass the network before it was quantised.")
    return model


def _foreign_kind(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module, which holds compiled code"
    package = type(module).__module__
    if ".quantized" in package or package.startswith(("bitsandbytes", "torchao")):
        return "quantised, so that its weights cannot be trained"
    if package.startswith("torch.distributed.fsdp"):
        return "sharded by FSDP"
    return None


def _trainable_type(weight: Tensor) -> bool:
    return weight.is_floating_point() or weight.is_complex()


def _in_train_mode(model: nn.Module, x: Tensor) -> Any:
    """Output of a copy of the model in train mode; the global random state is not changed."""
    probe = copied(model).train()
    with global_generators(x.device), torch.no_grad(), lone_samples(probe):
        return probe(x.clone())


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model; raises `UsageError` if an attribute cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # noqa: BLE001  # an attribute may raise anything when it is copied
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the model cannot be copied ({reason}), and it must not be changed; remove that attribute, or pass a new "
            "instance with the weights loaded."
        ) from None


def _form(output: Any) -> str:
    """Description of an output; empty for a tensor."""
    if isinstance(output, Tensor):
        return ""
    if isinstance(output, tuple | list) and type(output) in (tuple, list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"


def _described(output: Any) -> str:
    inner = first_tensor(output)
    shape = str(tuple(inner.shape)) if isinstance(inner, Tensor) else type(inner).__name__
    return f"{_form(output)} whose first part is {shape}" if _form(output) and inner is not output else shape


def described_output(output: Any) -> str:
    """What a network returned for a batch, in words: `logits (B, 10)`, `a tuple of 2, logits (B, 10) first`."""
    inner = first_tensor(output)
    if not isinstance(inner, Tensor):
        return _form(output) or type(output).__name__
    shape = ", ".join(["B", *map(str, inner.shape[1:])]) if inner.dim() else ""
    logits = f"logits ({shape}{',' if inner.dim() == 1 else ''})"
    return f"{_form(output)}, {logits} taken from it" if _form(output) else logits


def _columns(output: Any) -> int:
    if not isinstance(output, Tensor) or output.dim() == 0:
        return 0
    return 1 if output.dim() == 1 else output[0].numel() if output.dim() > 2 else output.shape[1]


def _may_be_probabilities(output: Any) -> bool:
    values = first_tensor(output)
    return isinstance(values, Tensor) and values.is_floating_point() and bool(((values >= 0) & (values <= 1)).all())


def _last_operation(model: nn.Module, x: Tensor) -> str:
    """`softmax` or `sigmoid` if that computes the outputs, else an empty string."""
    if not x.is_floating_point():
        return ""
    with evaluation_mode(model), torch.enable_grad():
        output = first_tensor(model(x.clone().requires_grad_().clone()))
    node = output.grad_fn if isinstance(output, Tensor) else None
    while node is not None and node.name().startswith(_VIEWS) and node.next_functions:
        node = node.next_functions[0][0]
    name = node.name() if node is not None else ""
    return next((kind for kind in ("softmax", "sigmoid") if name.startswith(kind.capitalize())), "")
