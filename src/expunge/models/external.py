"""Architectures of other libraries: image classifiers of Hugging Face, ResNet-50 of torchvision.

The libraries are imported on first use. A checkpoint with another number of classes is refused, unless the caller
requests a new head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.models.blocks import image_shape
from expunge.models.contract import Adapted


class LogitsOnly(Adapted):
    """Adapter of a Hugging Face image classifier: images (B, C, H, W) to logits (B, classes), without normalisation.

    Args:
        net: the classifier.
        side: side in pixels to which images are resized (bilinear), or None.
    """

    def __init__(self, net: nn.Module, side: int | None) -> None:
        super().__init__(net)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        out: Tensor = self.net(pixel_values=x).logits
        return out

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `Adapted.load_state_dict`; former names in files are converted by the library."""
        if strict and state_dict.keys() != self.net.state_dict().keys():
            state_dict = self._converted(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _converted(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        kind: Any = type(self.net)
        try:
            with _quiet():
                read, report = kind.from_pretrained(
                    None, config=self.net.config, state_dict=dict(state), output_loading_info=True
                )
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise RuntimeError(str(error)) from None
        if any(report.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
            return state  # strict loading names what does not fit
        converted: Mapping[str, Any] = read.state_dict()
        return converted

    def reset_parameters(self) -> None:
        """Random weights by the library's rules; its class and position tokens have no reset of their own."""
        fresh = type(self.net)(self.net.config)
        self.net.load_state_dict(fresh.state_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and reports; relevant facts are reported by this package."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def config_of(model: nn.Module) -> str | None:
    """`config.json` of a Hugging Face network, which `from_pretrained` reads with the weights; None for others."""
    config = getattr(model.net if isinstance(model, Adapted) else model, "config", None)
    as_text = getattr(config, "to_json_string", None)
    return str(as_text()) if callable(as_text) else None


def vit_hf(num_classes: int, input_shape: Sequence[int], source: str, fresh_head: bool = False) -> nn.Module:
    """Image classifier of Hugging Face.

    Args:
        num_classes: number of logits.
        input_shape: shape of the images.
        source: a folder written by `save_pretrained`, or a Hub id.
        fresh_head: whether to replace the head by a random one for `num_classes`.

    Raises:
        UsageError: if the source cannot be loaded or does not fit the data.
    """
    name = "vit-hf"
    channels, _, _ = image_shape(input_shape, 1, name)
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise UsageError(f"model `{name}` needs the extra `hub`: pip install 'expunge[hub]' ({error}).") from None
    try:
        # Code that is part of a checkpoint is never run.
        with _quiet():
            config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        expected = getattr(config, "num_channels", channels)
        if expected != channels:
            raise UsageError(f"model `{name}` from {source} takes {expected} channels, the data have {channels}.")
        refuse_other_head(name, source, config.num_labels, num_classes, fresh_head)
        with _quiet():
            net = AutoModelForImageClassification.from_pretrained(
                source, num_labels=num_classes, ignore_mismatched_sizes=fresh_head, trust_remote_code=False
            )
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"model `{name}`: `source` {source} cannot be loaded ({reason}); pass a folder written by save_pretrained "
            "or the id of an image classifier on the Hub."
        ) from None
    size = getattr(config, "image_size", None)
    return LogitsOnly(net, size if isinstance(size, int) else None)


def imagenet_resnet50(
    num_classes: int, input_shape: Sequence[int], weights: str = "IMAGENET1K_V1", fresh_head: bool = False
) -> nn.Module:
    """ResNet-50 of torchvision.

    Args:
        num_classes: number of logits.
        input_shape: shape of the images, with three channels.
        weights: torchvision's name of the weights (V1 as in the L2UL paper), or "none" for random ones.
        fresh_head: whether to replace the head by a random one for `num_classes`.

    Raises:
        UsageError: without torchvision, or if the weights do not fit the data.
    """
    name = "imagenet-resnet50"
    if image_shape(input_shape, 32, name)[0] != 3:
        raise UsageError(f"model `{name}` takes 3 channels, the data have {input_shape[0]}.")
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:  # the last two: built for another torch
        raise UsageError(
            f"model `{name}` needs torchvision built for the installed torch: pip install 'expunge[vision]' ({error})."
        ) from None
    if weights == "none":
        plain: nn.Module = torchvision.models.resnet50(weights=None, num_classes=num_classes)
        return plain
    refuse_other_head(name, weights, 1000, num_classes, fresh_head)
    net = torchvision.models.resnet50(weights=weights)
    if num_classes != net.fc.out_features:
        net.fc = nn.Linear(net.fc.in_features, num_classes)
    model: nn.Module = net
    return model


def refuse_other_head(name: str, source: str, classes: int, wanted: int, fresh_head: bool) -> None:
    """Raise `UsageError` if weights for `found` classes are used for `wanted` classes without a new head."""
    if classes != wanted and not fresh_head:
        raise UsageError(
            f"model `{name}` from {source} has {classes} classes, the data have {wanted}; "
            "pass fresh_head=true to draw a new head."
        )
