"""BatchNorm folded into the convolution before it: the same function in eval mode, with fewer passes over memory."""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from expunge.models.modes import evaluation_mode


def folded(model: nn.Module, sample: Tensor) -> nn.Module:
    """A copy of `model` for inference and input gradients, faster where BatchNorm can be folded; else `model` itself.

    sample (B, ...): tried out on it; a model that cannot be traced, or whose copy says something else, stays as it is.
    The copy's weights are its own and need no gradient.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return model
    try:
        with evaluation_mode(model), torch.no_grad():
            expected = model(sample)
            made = _fold(copy.deepcopy(model).eval()).requires_grad_(False)
            same = torch.allclose(made(sample), expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    except Exception:  # noqa: BLE001  # tracing runs the model's own code on stand-ins, which may fail in any way
        return model
    return made if same else model


def _fold(model: nn.Module) -> nn.Module:
    """Every BatchNorm that alone reads the output of a convolution that runs once goes into that convolution."""
    traced = torch.fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, torch.fx.Node) and {node.op, before.op} == {"call_module"}):
            continue
        norm, convolution = modules[str(node.target)], modules[str(before.target)]
        fits = isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d) and norm.track_running_stats
        if fits and len(before.users) == 1 and calls[before.target] == 1:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()
