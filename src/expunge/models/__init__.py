"""Architectures. This page is the catalogue, without importing torch; third parties: `expunge.models`.

Every factory takes (num_classes, input_shape, **options). Users pass their own as `package.module:function` or
`path/to/file.py:function`; nothing has to be registered, and `@expunge.model` registers what is to be listed.
"""

from __future__ import annotations

from expunge.core.registry import Card, Paper, Registry

ALLCNN = Paper(cite="Springenberg et al.: Striving for Simplicity, ICLR 2015 workshop", url="arXiv:1412.6806")
RESNET = Paper(cite="He et al.: Deep Residual Learning, CVPR 2016", url="arXiv:1512.03385")
PREACT = Paper(cite="He et al.: Identity Mappings in Deep Residual Networks, ECCV 2016", url="arXiv:1603.05027")
VGG = Paper(cite="Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015", url="arXiv:1409.1556")
MOBILE = Paper(cite="Sandler et al.: MobileNetV2, CVPR 2018", url="arXiv:1801.04381")
SQUEEZE = Paper(cite="Iandola et al.: SqueezeNet, 2016", url="arXiv:1602.07360")
DENSE = Paper(cite="Huang et al.: Densely Connected Convolutional Networks, CVPR 2017", url="arXiv:1608.06993")
VIT = Paper(cite="Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021", url="arXiv:2010.11929")
LAF = Paper(cite="Shen et al.: Label-Agnostic Forgetting, ICLR 2024", url="arXiv:2404.00506")

_SMALL = "expunge.models.convnets"
_RES = "expunge.models.resnets"
_MOBILE = "expunge.models.mobile"
_EXTERNAL = "expunge.models.external"

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
        Card(
            name="mobilenetv2-cifar",
            summary="MobileNetV2 with early strides of 1 (2,236,682 parameters at 10 classes)",
            target=f"{_MOBILE}:mobilenetv2_cifar",
            needs="images of at least 16 x 16",
            paper=MOBILE,
        ),
        Card(
            name="squeezenet-cifar",
            summary="SqueezeNet 1.1 with early strides of 1 and BatchNorm",
            target=f"{_MOBILE}:squeezenet_cifar",
            needs="images of at least 16 x 16",
            paper=SQUEEZE,
        ),
        Card(
            name="densenet-cifar",
            summary="DenseNet-BC, depth 100, growth 12 (769,162 parameters at 10 classes)",
            target=f"{_MOBILE}:densenet_cifar",
            needs="images of at least 16 x 16",
            paper=DENSE,
        ),
        Card(
            name="vit-hf",
            summary="ViT or another image classifier of Hugging Face, from a folder or Hub id (option `source`)",
            target=f"{_EXTERNAL}:vit_hf",
            needs="images; the extra `hub`",
            paper=VIT,
        ),
        Card(
            name="imagenet-resnet50",
            summary="torchvision's ResNet-50 with ImageNet weights, L2UL paper",
            target=f"{_EXTERNAL}:imagenet_resnet50",
            needs="images of at least 32 x 32; torchvision",
            paper=RESNET,
        ),
    ],
    decorator="@expunge.model(name, summary=...)",
)
