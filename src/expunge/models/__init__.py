"""Architectures. This page is the catalogue, without importing torch; third parties: `expunge.models`.

Every factory takes (num_classes, input_shape, **options). Users pass their own as `package.module:function` or
`path/to/file.py:function`; nothing has to be registered.
"""

from __future__ import annotations

from expunge.core.registry import Card, Paper, Registry

ALLCNN = Paper(cite="Springenberg et al.: Striving for Simplicity, ICLR 2015 workshop", url="arXiv:1412.6806")
RESNET = Paper(cite="He et al.: Deep Residual Learning, CVPR 2016", url="arXiv:1512.03385")
PREACT = Paper(cite="He et al.: Identity Mappings in Deep Residual Networks, ECCV 2016", url="arXiv:1603.05027")
VGG = Paper(cite="Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015", url="arXiv:1409.1556")
LAF = Paper(cite="Shen et al.: Label-Agnostic Forgetting, ICLR 2024", url="arXiv:2404.00506")

_SMALL = "expunge.models.convnets"
_RES = "expunge.models.resnets"

MODELS = Registry(
    "model",
    [
        Card(name="mlp", summary="two hidden layers; any input", target=f"{_SMALL}:mlp", needs="any shape"),
        Card(
            name="small-cnn",
            summary="two convolutions with BatchNorm; for 8x8 digits, tests and first steps",
            target=f"{_SMALL}:small_cnn",
            needs="images of at least 4 x 4",
        ),
        Card(
            name="cnn",
            summary="the LAF paper's CNN for MNIST and Fashion-MNIST (449,098 parameters at 1 x 28 x 28)",
            target=f"{_SMALL}:laf_cnn",
            needs="images of at least 4 x 4",
            paper=LAF,
        ),
        Card(
            name="allcnn",
            summary="All-CNN of the SCRUB paper (1.62 M parameters)",
            target=f"{_SMALL}:all_cnn",
            needs="images of at least 8 x 8",
            paper=ALLCNN,
        ),
        Card(
            name="resnet18-preact",
            summary="pre-activation ResNet-18 with width fraction, SCRUB paper (1.0: 11.18 M, 0.4: 1.79 M)",
            target=f"{_RES}:preact_resnet18",
            needs="images of at least 8 x 8",
            paper=PREACT,
        ),
        Card(
            name="resnet18-cifar",
            summary="ResNet-18 with 3x3 stem and max-pool, L2UL paper (11,173,962 parameters)",
            target=f"{_RES}:cifar_resnet18",
            needs="images of at least 16 x 16",
            paper=RESNET,
        ),
        Card(
            name="resnet50-cifar",
            summary="ResNet-50 with 3x3 stem, L2UL paper (23,705,252 parameters at 100 classes)",
            target=f"{_RES}:cifar_resnet50",
            needs="images of at least 8 x 8",
            paper=RESNET,
        ),
        Card(
            name="resnet18-laf",
            summary="ResNet-18 with ImageNet stem and a 256-wide representation, LAF paper (11,310,410 parameters)",
            target=f"{_RES}:laf_resnet18",
            needs="images of at least 32 x 32",
            paper=LAF,
        ),
        Card(
            name="vgg16-bn",
            summary="VGG-16 with BatchNorm, CIFAR variant",
            target=f"{_SMALL}:vgg16_bn",
            needs="images of at least 32 x 32",
            paper=VGG,
        ),
    ],
)
