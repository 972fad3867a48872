"""Hub data sets: objects of `datasets`, and loading by id without a network."""

from __future__ import annotations

import builtins
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.core.errors import DataError, UsageError
from expunge.data import DATASETS
from expunge.data.convert import as_split
from expunge.data.sources import load_data, load_pair

datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
pytestmark = pytest.mark.hub


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def hub_data(count: int = 6) -> Any:
    def png(number: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(pixels(number)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict(
        {"img": [png(i) for i in range(count)], "label": [i % 3 for i in range(count)]}, features=features
    )


def test_a_dataset_object_also_shuffled_and_filtered():
    data = hub_data()
    split = as_split(data, name="train")
    assert split.store.classes == ("a", "b", "c")
    assert split.y.tolist() == [0, 1, 2, 0, 1, 2]
    chosen = as_split(data.select([4, 1]), name="train")
    for i, number in enumerate((4, 1)):
        assert np.array_equal(chosen.store.samples[i].numpy(), pixels(number).transpose(2, 0, 1))


def test_a_dataset_dict_or_a_transform_is_refused():
    with pytest.raises(DataError, match=r"give one split, such as data\['train'\]"):
        as_split(datasets.DatasetDict({"train": hub_data()}))
    with pytest.raises(DataError, match="reset_format"):
        as_split(hub_data().with_transform(lambda batch: batch))


def test_by_id(monkeypatch):
    asked = []

    def load(hub: str, config: str | None) -> Any:
        asked.append((hub, config))
        return datasets.DatasetDict({"train": hub_data(), "test": hub_data(2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    train, test = load_pair("hf:someone/things/small")
    assert asked == [("someone/things", "small")]
    assert train.ids.tolist() == [f"train/{i}" for i in range(6)]
    assert test.ids.tolist() == ["test/0", "test/1"]
    load_pair("cifar10")
    load_pair("hf:uoft-cs/cifar10")
    assert asked[1:] == [("uoft-cs/cifar10", "plain_text")] * 2
    # The names "a", "b", "c" are not CIFAR-10's: its constants are not applied.
    assert load_data("cifar10").store.normalisation is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "pass a local folder"),
        (FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "cannot be loaded: Dataset 'a/b' doesn't exist"),
        (ValueError("BuilderConfig 'x' not found.\nmore"), "BuilderConfig 'x' not found; check the id"),
    ],
)
def test_what_cannot_be_loaded(monkeypatch, error, message):
    def load(*_: object) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=message):
        load_data("hf:a/b")


def test_an_earlier_download_is_used_without_a_network(monkeypatch, tmp_path):
    import huggingface_hub

    def load(*_: object) -> Any:
        raise ConnectionError("offline")

    (tmp_path / "data").mkdir()
    hub_data().to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    train, test = load_pair("hf:a/b")
    assert len(train) == 6
    assert test is None
    assert torch.equal(train.store.samples[0], torch.from_numpy(pixels(0).transpose(2, 0, 1).copy()))


def png(seed: int, shape: tuple[int, ...]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("name", ["fashion-mnist", "svhn"])
def test_catalogue_entries_read_the_hubs_own_layout(name, monkeypatch, tmp_path, caplog):
    """Files, folders, columns and class names as the Hub has them, a few samples of each part."""
    import huggingface_hub

    known = DATASETS.load(name)
    shape = known.shape[1:] if known.shape[0] == 1 else (*known.shape[1:], known.shape[0])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(known.classes))})
    folder = tmp_path / {"fashion-mnist": "fashion_mnist", "svhn": "cropped_digits"}[name]
    folder.mkdir()
    parts = {"train": 12, "test": 5, **({"extra": 7} if name == "svhn" else {})}
    for at, (part, count) in enumerate(parts.items()):
        rows = {"image": [png(100 * at + i, shape) for i in range(count)], "label": [i % 10 for i in range(count)]}
        file = folder / f"{part}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    asked = []

    def load(hub: str, config: str | None) -> Any:
        asked.append((hub, config))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    train, test = load_pair(name)
    assert asked == [(known.hub, known.config)]
    assert (len(train), len(test)) == (12, 5)  # `extra` is not used
    assert train.store.classes == known.classes
    assert train.y.tolist() == [*range(10), 0, 1]
    assert train.input_shape == test.input_shape == known.shape
    assert (train.store.normalisation.mean, train.store.normalisation.std) == (known.mean, known.std)
    pixel = np.asarray(Image.open(io.BytesIO(png(3, shape)["bytes"])))
    shown = train.store.samples[3].numpy()
    assert np.array_equal(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0), pixel)
    said = [record.message for record in caplog.records if "training samples per class" in record.message]
    assert len(said) == (name == "svhn")  # of which the published class sizes are known


def test_missing_extra(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install expunge\[hub\]"):
        load_data("hf:a/b")
