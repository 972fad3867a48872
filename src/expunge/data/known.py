"""Facts about public data sets: their location, column names and pixel normalisation.

Torch-free, so `expunge list datasets` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from expunge.core.registry import Card

DIGIT_NAMES = tuple(str(i) for i in range(10))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Constants that a recipe may name, as (description, mean, deviation); all for colour images. The SCRUB authors' code
# divides CIFAR-10 and CIFAR-100 by the same deviations, which are smaller than those of the pixels, and its Lacuna
# constants appear to be in blue-green-red order although the images are red-green-blue.
CONSTANTS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ("ImageNet", IMAGENET_MEAN, IMAGENET_STD),
    "scrub-cifar": ("SCRUB authors' CIFAR", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "scrub-lacuna": ("SCRUB authors' Lacuna", (0.382, 0.420, 0.502), (0.276, 0.279, 0.302)),
}


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """One public data set.

    Attributes:
        name: what users write.
        summary: one line for listings.
        shape: (C, H, W) as stored.
        mean: per channel, of training pixels in [0, 1].
        std: per channel, likewise.
        num_classes: number of classes.
        classes: class names if they identify the set, else empty.
        train_counts: training samples per class, compared with the loaded data, or empty.
        hub: its Hugging Face id; "" for data that are part of a dependency.
        config: name of the variant on the Hub.
        image: column of the images.
        label: column of the labels.
        train: name of the training split.
        test: name of the test split.
        image_size: side to which images are resized, for sets of mixed sizes.
        licence: terms of use, as far as known.
    """

    name: str
    summary: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    classes: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    hub: str = ""
    config: str | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    image_size: int | None = None
    licence: str

    @property
    def card(self) -> Card:
        """Its entry in the registry."""
        place = f"hub id {self.hub}" if self.hub else "bundled with scikit-learn"
        return Card(name=self.name, summary=self.summary, needs=place, tags=("images", f"{self.num_classes} classes"))

    def matches(self, classes: tuple[str, ...], shape: tuple[int, ...]) -> bool:
        """Whether class names and sample shape identify this set."""
        return bool(self.classes) and classes == self.classes and tuple(shape) == self.shape


KNOWN = (
    KnownDataset(
        name="digits",
        summary="1,797 handwritten digits, 8x8 grey: needs no download",
        shape=(1, 8, 8),
        mean=(0.3056,),
        std=(0.3760,),
        num_classes=10,
        classes=DIGIT_NAMES,
        licence="CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)",
    ),
    KnownDataset(
        name="mnist",
        summary="70,000 handwritten digits, 28x28 grey",
        hub="ylecun/mnist",
        config="mnist",
        shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        num_classes=10,
        classes=DIGIT_NAMES,
        licence="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    ),
    KnownDataset(
        name="fashion-mnist",
        summary="70,000 pictures of clothes, 28x28 grey",
        hub="zalando-datasets/fashion_mnist",
        config="fashion_mnist",
        shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
        num_classes=10,
        classes=(
            "T - shirt / top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        licence="MIT (Zalando)",
    ),
    KnownDataset(
        name="cifar10",
        summary="60,000 photographs of 10 kinds of things, 32x32 colour",
        hub="uoft-cs/cifar10",
        config="plain_text",
        image="img",
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        num_classes=10,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        licence="no licence stated (Krizhevsky 2009); research use is customary",
    ),
    KnownDataset(
        name="cifar100",
        summary="60,000 photographs of 100 kinds of things, 32x32 colour",
        hub="uoft-cs/cifar100",
        config="cifar100",
        image="img",
        label="fine_label",
        shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        num_classes=100,
        licence="no licence stated (Krizhevsky 2009); research use is customary",
    ),
    KnownDataset(
        name="svhn",
        summary="99,289 house numbers, 32x32 colour; the `extra` split is not used",
        hub="ufldl-stanford/svhn",
        config="cropped_digits",
        shape=(3, 32, 32),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        num_classes=10,
        classes=DIGIT_NAMES,
        train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        licence="non-commercial use only (Netzer et al. 2011)",
    ),
    KnownDataset(
        name="tiny-imagenet",
        summary="110,000 photographs of 200 kinds of things, 64x64 colour",
        hub="zh-plus/tiny-imagenet",
        test="valid",
        shape=(3, 64, 64),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        num_classes=200,
        licence="ImageNet terms: non-commercial research",
    ),
    KnownDataset(
        name="imagenette",
        summary="13,394 photographs of 10 ImageNet classes, brought to 160x160 colour",
        hub="frgfm/imagenette",
        config="160px",
        test="validation",
        shape=(3, 160, 160),
        image_size=160,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_classes=10,
        licence="Apache 2.0 for the selection; ImageNet terms for the pictures",
    ),
)
