"""Data sets that a function of the user returns: arrays, encoded images, files; and what is wrong with others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import expunge
from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.data import DATASETS
from expunge.data.sources import load_pair

PIXELS = np.arange(3 * 5 * 4 * 3, dtype=np.uint8).reshape(3, 5, 4, 3)
Register = Callable[..., None]


@pytest.fixture
def register() -> Iterator[Register]:
    def add(returned: Any, **more: Any) -> None:
        def function() -> Any:
            return returned

        expunge.data_set("theirs", summary="theirs", **more)(function)

    yield add
    DATASETS.remove("theirs")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


def test_arrays_with_ids_names_and_a_test_part(register: Register) -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([1, 0, 1, 0])
    register({"train": (x, y, np.array([70, 7, 700, 17])), "test": (x[:2], y[:2])}, classes=("cat", "dog"))
    train, test = load_pair("theirs")
    assert train.store.classes == ("cat", "dog")
    assert train.y.tolist() == y.tolist()
    assert train.ids.tolist() == ["70", "7", "700", "17"]
    assert test is not None
    assert test.inputs().tolist() == x[:2].tolist()


@pytest.mark.parametrize("kind", ["bytes", "paths", "text"])
def test_encoded_images_are_decoded_as_in_a_folder(kind: str, register: Register, tmp_path: Path) -> None:
    images: list[Any] = [png(image) for image in PIXELS]
    if kind != "bytes":
        for number, image in enumerate(images):
            (tmp_path / f"{number}.png").write_bytes(image)
        images = [tmp_path / f"{number}.png" for number in range(3)]
        images = [str(image) for image in images] if kind == "text" else images
    register((images, ["a", "b", "a"]))
    train, test = load_pair("theirs")
    assert test is None
    assert train.store.classes == ("a", "b")
    raw = next(iter(train.store.fetch([train.index], train.index.device)))
    assert np.array_equal(raw.numpy(), PIXELS.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"tests": ([[1.0]], [0])}, "returns the parts tests; it must return `train`"),
        ({}, "returns the parts none"),
        (([[1.0]],), r"expected \(samples, labels\)"),
        (([[1.0], [2.0]], [0]), "expected samples .N, .... and labels .N,."),
        ((["a.png", 3], [0, 1]), "row 1: expected bytes or a path, got 3"),
        ((np.array([["x"], ["y"]]), [0, 1]), "samples must be numbers, or encoded images"),
        ((["no-such.png"], [0]), "no-such.png"),
    ],
)
def test_what_is_wrong_is_one_sentence(returned: Any, message: str, register: Register) -> None:
    register(returned)
    with pytest.raises(DataError, match=message):
        load_pair("theirs")


def test_a_function_that_raises_is_named() -> None:
    @expunge.data_set("theirs", summary="fails")
    def theirs() -> Any:
        raise FileNotFoundError("no disk")

    with pytest.raises(DataError, match="data set `theirs` cannot be read: FileNotFoundError: no disk"):
        load_pair("theirs")
    DATASETS.remove("theirs")


def test_a_public_name_stays_public() -> None:
    with pytest.raises(ExpungeError, match="the dataset name `mnist` is already taken"):
        expunge.data_set("mnist", summary="mine")(lambda: None)


def test_a_function_in_a_file_needs_no_registration_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import expunge\n\n@expunge.data_set('from-file', summary='three rows')\ndef rows():\n"
        "    return [[1.0], [2.0], [3.0]], ['b', 'a', 'b']\n\ndef other():\n    return None\n"
    )
    train, _ = load_pair(f"{path}:rows")
    assert train.y.tolist() == [1, 0, 1]
    with pytest.raises(UsageError, match=r"is no dataset: register it with @expunge\.data_set"):
        load_pair(f"{path}:other")
    DATASETS.remove("from-file")
