"""How well a model answers its training data, and what its preprocessing must have been."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.api.fit import measure_fit, settle_normalisation
from expunge.data.split import Normalisation, ResidentStore, Split

CONSTANTS = Normalisation((0.2,), (0.1,))


def images(count: int = 60) -> Split:
    """Class 1 is bright: its mean pixel is about 140, that of class 0 about 20."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 40, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 120 * labels[:, None, None, None]).to(torch.uint8)
    return Split.whole(ResidentStore(pixels, labels, normalisation=CONSTANTS, name="train"))


class Window(nn.Module):
    """Answers 1 where the mean input is within `width` of `centre`, so that no other preprocessing fits."""

    def __init__(self, centre: float, width: float) -> None:
        super().__init__()
        self.centre, self.width = nn.Parameter(torch.tensor(centre)), width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.width - (x.flatten(1).mean(1) - self.centre).abs()
        return torch.stack([-inside, inside], 1)


def seen_at(normalisation: Normalisation | None) -> Window:
    """A model that recognises class 1 if pixels are read with these constants."""
    mean, std = (0.0, 1.0) if normalisation is None else (normalisation.mean[0], normalisation.std[0])
    return Window((140 / 255 - mean) / std, 50 / 255 / std)


@pytest.mark.parametrize(
    ("trained_with", "name"), [(None, "none"), (Normalisation((0.5,), (0.5,)), "half")], ids=["plain", "half"]
)
def test_what_the_training_accuracy_tells_is_taken_for_all_splits(trained_with, name):
    train, test = images(), images(20)
    taken, note = settle_normalisation(seen_at(trained_with), train, [test, None])
    assert taken == name
    assert f"`normalise={name}`" in note
    assert "100.0% of its training data" in note
    assert train.store.normalisation == test.store.normalisation == trained_with


def test_constants_that_fit_stay():
    train = images()
    assert settle_normalisation(seen_at(CONSTANTS), train) == ("", "")
    assert train.store.normalisation == CONSTANTS


def test_a_model_that_nothing_fits_changes_nothing():
    train = images()
    assert settle_normalisation(Window(1e6, 1.0), train) == ("", "")
    assert train.store.normalisation == CONSTANTS


def test_data_without_constants_are_left_alone():
    train = Split.whole(ResidentStore(images().store.samples, torch.arange(60) % 2))
    assert settle_normalisation(seen_at(CONSTANTS), train) == ("", "")
    assert train.store.normalisation is None


def test_accuracies_and_chance():
    train = images()
    good, blind = measure_fit(seen_at(CONSTANTS), train, images(20)), measure_fit(Window(1e6, 1.0), train, images(20))
    assert (good.train, good.test, good.balanced, good.near_chance) == (1.0, 1.0, 1.0, False)
    assert (blind.train, blind.balanced, blind.near_chance) == (0.5, 0.5, True)
    assert "50.0% of its training data" in blind.sentence()
