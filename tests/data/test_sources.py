"""Every kind of source, its cache, and what happens when data are bad."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from expunge.core.errors import DataError, UsageError
from expunge.data import DATASETS
from expunge.data import images as images_module
from expunge.data.sources import _check_counts, load_data, load_pair
from expunge.data.split import ResidentStore, Split, StreamingStore


def picture(seed: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes],
    labels: list[int | None],
    *,
    names: tuple[str, ...] | None = ("ant", "bee", "cow"),
    label: str = "label",
    **extra: list[object],
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    struct = pa.array([{"bytes": b, "path": None} for b in images], kind)
    table = pa.table({"image": struct, label: pa.array(labels, pa.int64()), **extra})
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if names:
        features[label] = {"_type": "ClassLabel", "names": list(names)}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "insects"
    write_parquet(
        folder / "train-00000-of-00002.parquet",
        [encode(picture(i)) for i in range(5)],
        [0, 1, 2, 0, 1],
        user=[1, 1, 2, 2, 3],
    )
    write_parquet(
        folder / "train-00001-of-00002.parquet", [encode(picture(i)) for i in range(5, 8)], [2, 0, 1], user=[3, 4, 4]
    )
    write_parquet(folder / "test-00000-of-00001.parquet", [encode(picture(9))], [1], user=[9])
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    for split, count in (("train", 4), ("test", 2)):
        for kind in ("bear", "ape"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                picture(i).save(folder / f"{i}.png")
    return root


def raw_samples(split):
    return split.store.samples


def test_digits_are_stratified_disjoint_and_the_same_every_time(tmp_path):
    train, test = load_pair("digits", cache=tmp_path)
    assert (len(train), len(test)) == (1438, 359)
    assert train.input_shape == (1, 8, 8)
    assert not set(train.ids) & set(test.ids)
    assert len(set(train.ids) | set(test.ids)) == 1797
    counts = test.y.bincount(minlength=10)
    assert int(counts.max() - counts.min()) <= 2
    again = load_data("digits", cache=tmp_path / "other")
    assert again.content_hash() == train.content_hash()
    x = train.inputs()
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01


def test_parquet_folder(hub_folder):
    train, test = load_pair(hub_folder)
    assert train.store.classes == test.store.classes == ("ant", "bee", "cow")
    assert train.y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert train.ids.tolist() == [f"train/{i}" for i in range(8)]
    assert test.ids.tolist() == ["test/0"]
    assert train.store.columns["user"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    for i in range(8):
        expected = np.asarray(picture(i)).transpose(2, 0, 1)
        assert np.array_equal(raw_samples(train)[i].numpy(), expected)
    assert train.store.normalisation is None


def test_single_parquet_without_class_names_or_test(tmp_path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, [encode(picture(i)) for i in range(3)], [0, 2, 1], names=None, name=["u", "v", "w"])
    train, test = load_pair(path, id_column="name")
    assert test is None
    assert train.store.classes == ("0", "1", "2")
    assert train.ids.tolist() == ["u", "v", "w"]
    with pytest.raises(DataError, match=r"has no test split; it has: train"):
        load_data(path, split="test")


def test_image_folder(image_folder):
    train, test = load_pair(image_folder)
    assert train.store.classes == test.store.classes == ("ape", "bear")
    assert train.ids[0] == "train/ape/0.png"
    assert train.y.tolist() == [0] * 4 + [1] * 4
    assert len(test) == 4
    assert load_data(image_folder / "train").ids[0] == "ape/0.png"


def test_classes_are_those_of_all_parts(image_folder):
    shutil.rmtree(image_folder / "test" / "ape")
    assert load_data(image_folder, split="test").y.tolist() == [1, 1]


def test_image_folder_with_metadata(tmp_path):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label,age\n2.png,dog,7\n0.png,cat,5\n1.png,dog,6\n")
    train = load_data(tmp_path)
    assert train.store.classes == ("cat", "dog")
    assert train.y.tolist() == [0, 1, 1]
    assert train.store.columns["age"].tolist() == [5, 6, 7]
    (tmp_path / "metadata.csv").write_text("file_name,label\n2.png,dog\n")
    with pytest.raises(DataError, match=r"no row for 2 images, e\.g\. 0\.png"):
        load_data(tmp_path)


def test_npz_npy_and_csv(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
    y = np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    train, test = load_pair(tmp_path / "a.npz")
    assert train.input_shape == (1, 5, 5)
    assert len(test) == 2
    np.savez(tmp_path / "b.npz", images=np.repeat(x[..., None], 3, 3), labels=np.array(list("abcabc")))
    colour = load_data(tmp_path / "b.npz")
    assert colour.input_shape == (3, 5, 5)
    assert colour.store.classes == ("a", "b", "c")
    np.save(tmp_path / "x_train.npy", x.astype(np.float64))
    np.save(tmp_path / "y_train.npy", y)
    rows = load_data(tmp_path / "x_train.npy")
    assert raw_samples(rows).dtype == torch.float32
    assert rows.input_shape == (5, 5)
    (tmp_path / "t.csv").write_text("id,age,income,city,label\na,1,2.5,Rome,yes\nb,3,4.5,Oslo,no\n")
    table = load_data(tmp_path / "t.csv")
    assert raw_samples(table).tolist() == [[1, 2.5], [3, 4.5]]
    assert table.store.classes == ("no", "yes")
    assert table.ids.tolist() == ["a", "b"]
    assert table.store.columns["city"].tolist() == ["Rome", "Oslo"]
    scaled = load_data(tmp_path / "t.csv", normalise="computed")
    torch.testing.assert_close(scaled.inputs(), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_computed_normalisation_is_that_of_the_training_samples(hub_folder):
    train, test = load_pair(hub_folder, normalise="computed")
    assert train.store.normalisation == test.store.normalisation
    x = train.inputs().double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    assert load_data(hub_folder, split="test", normalise="computed").store.normalisation == train.store.normalisation


def test_normalise_options(hub_folder):
    assert load_data("digits", normalise="none").store.normalisation is None
    assert load_data(hub_folder, normalise="imagenet").store.normalisation.mean[0] == 0.485
    with pytest.raises(UsageError, match="colour"):
        load_data("digits", normalise="imagenet")
    with pytest.raises(UsageError, match="did you mean `standard`"):
        load_data("digits", normalise="standart")


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("scrub-cifar", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("scrub-lacuna", (0.382, 0.420, 0.502), (0.276, 0.279, 0.302)),
    ],
)
def test_the_scrub_authors_constants(hub_folder, name, mean, std):
    split = load_data(hub_folder, normalise=name)
    plain = load_data(hub_folder, normalise="none")
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(split.inputs(), (plain.inputs() - shift) / scale)
    with pytest.raises(UsageError, match=r"SCRUB authors' .* constants are for colour images"):
        load_data("digits", normalise=name)


def test_known_data_are_recognised_by_class_names(tmp_path):
    names = DATASETS.load("cifar10").classes
    path = tmp_path / "my-copy" / "train.parquet"
    write_parquet(path, [encode(picture(0, (32, 32)))], [3], names=names)
    assert load_data(path.parent).store.normalisation.mean == DATASETS.load("cifar10").mean


def test_a_second_load_decodes_nothing(hub_folder, tmp_path, monkeypatch):
    first = load_data(hub_folder, cache=tmp_path / "cache")

    def refuse(*_: object) -> None:
        raise RuntimeError("decoded again")

    monkeypatch.setattr(images_module, "_decode", refuse)
    second = load_data(hub_folder, cache=tmp_path / "cache")
    assert second.content_hash() == first.content_hash()
    assert not list((tmp_path / "cache" / "data").glob(".part*"))


def test_changed_source_is_decoded_again(hub_folder, tmp_path):
    before = load_data(hub_folder, split="test", cache=tmp_path / "cache")
    write_parquet(hub_folder / "test-00000-of-00001.parquet", [encode(picture(77))], [1], user=[9])
    after = load_data(hub_folder, split="test", cache=tmp_path / "cache")
    assert not torch.equal(raw_samples(before), raw_samples(after))


@pytest.mark.parametrize("damage", ["truncate", "flip", "meta"])
def test_damaged_cache_is_rebuilt(hub_folder, tmp_path, damage, caplog):
    good = load_data(hub_folder, cache=tmp_path / "cache").content_hash()
    file = next((tmp_path / "cache" / "data").glob("*/samples.npy"))
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-50])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (file.parent / "meta.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert load_data(hub_folder, cache=tmp_path / "cache").content_hash() == good
    assert ("damaged" in caplog.text) == (damage != "meta")
    assert next((tmp_path / "cache" / "data").glob("*/samples.npy")).read_bytes() == content


def test_unwritable_cache_only_warns(hub_folder, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(load_data(hub_folder, cache=blocked / "cache")) == 8
    assert "cannot be written" in caplog.text


def test_large_data_are_streamed_and_equal(hub_folder, image_folder, monkeypatch):
    for source in (hub_folder, image_folder):
        monkeypatch.delenv("EXPUNGE_RESIDENT_BYTES", raising=False)
        resident = load_data(source, image_size=9)
        monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "100")
        streaming = load_data(source, image_size=9)
        assert isinstance(resident.store, ResidentStore)
        assert isinstance(streaming.store, StreamingStore)
        assert streaming.input_shape == (3, 9, 9)
        for a, b in zip(
            resident.batches(3, shuffle=True, seed=2), streaming.batches(3, shuffle=True, seed=2), strict=True
        ):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.index, b.index)
    monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "much")
    with pytest.raises(UsageError, match="whole number of bytes"):
        load_data(hub_folder)


def test_image_size_enlarges_on_the_device_and_shrinks_while_decoding(hub_folder):
    large = load_data(hub_folder, image_size=24)
    assert raw_samples(large).shape[1:] == (3, 6, 6)
    assert large.input_shape == (3, 24, 24)
    small = load_data(hub_folder, image_size=4)
    assert raw_samples(small).shape[1:] == (3, 4, 4)


def test_grey_and_mixed_sizes(tmp_path):
    for i in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture(i, mode="L" if i else "RGB").save(tmp_path / "a" / f"{i}.png")
    assert load_data(tmp_path).input_shape == (3, 6, 6)  # one of four has colour
    assert load_data(tmp_path, mode="L").input_shape == (1, 6, 6)
    picture(9, (8, 6), "L").save(tmp_path / "a" / "9.png")
    with pytest.raises(DataError, match=r"9\.png: the image is 6x8, others are 6x6; pass image_size"):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=6).input_shape == (3, 6, 6)


def test_mixed_sizes_that_the_probes_miss(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "PROBES", 2)
    sizes = [(6, 6), (7, 6), (6, 6)]
    write_parquet(tmp_path / "train.parquet", [encode(picture(i, s)) for i, s in enumerate(sizes)], [0, 1, 2])
    with pytest.raises(DataError, match="row 1: the image is 6x7"):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=12).input_shape == (3, 12, 12)


def test_damaged_images_name_file_and_row(tmp_path, image_folder):
    good = encode(picture(0, (40, 40)), "JPEG")
    for bad, message in ((good[: len(good) // 2], "damaged image"), (b"hello", "not an image"), (b"", "")):
        write_parquet(tmp_path / "p" / "train.parquet", [good, good, bad], [0, 1, 2])
        with pytest.raises(DataError, match=rf"train\.parquet, row 2: .*{message}"):
            load_data(tmp_path / "p")
    victim = image_folder / "train" / "ape" / "1.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=r"ape.1\.png"):
        load_data(image_folder)


def test_bad_labels_name_file_and_row(tmp_path):
    content = [encode(picture(i)) for i in range(3)]
    for labels, shown in (([0, -1, 2], "label -1"), ([0, 7, 1], "label 7"), ([0, None, 1], "there is no label")):
        write_parquet(tmp_path / "train.parquet", content, labels)
        with pytest.raises(DataError, match=rf"train\.parquet, row 1: {shown}"):
            load_data(tmp_path)


def test_class_sizes_other_than_published_are_said(caplog):
    known = DATASETS.load("svhn")
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(known.train_counts))
    for given in (labels, labels[1:]):
        _check_counts(known, Split.whole(ResidentStore(torch.zeros(len(given), 1), given)))
    (record,) = caplog.records
    assert "svhn has [4947, 13861" in record.message


@pytest.mark.parametrize("kind", ["parquet", "npz", "npy"])
def test_truncated_files(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        write_parquet(path, [encode(picture(0))], [0])
    elif kind == "npz":
        np.savez(path, x=np.zeros((4, 2)), y=np.zeros(4, dtype=int))
    else:
        np.save(path, np.zeros((4, 2)))
        np.save(tmp_path / "y.npy", np.zeros(4, dtype=int))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"cannot read .*x\.{kind}"):
        load_data(path)


def test_pickles_in_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, dtype=int))
    with pytest.raises(DataError, match=r"without pickled objects"):
        load_data(tmp_path / "x.npz")


def test_wrong_requests(tmp_path, hub_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xyz").write_text("")
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    np.savez(tmp_path / "z.npz", foo=np.zeros(2))
    (tmp_path / "nan.csv").write_text("a,label\n1,0\n,1\n")
    (tmp_path / "text.csv").write_text("a,label\nx,0\n")
    for spec, message in (
        ("mnits", "did you mean `mnist`"),
        (tmp_path / "nowhere" / "x.npz", "no file or folder"),
        (tmp_path / "empty", "holds no images and no parquet"),
        (tmp_path / "a.xyz", r"type `\.xyz` cannot be read"),
        (tmp_path / "x.npy", r"no labels for .*expected y\.npy in the same folder"),
        (tmp_path / "z.npz", "holds foo; expected x and y"),
        (tmp_path / "nan.csv", "line 3: the sample holds NaN"),
        (tmp_path / "text.csv", "neither an image column nor numeric columns"),
        ("hf:a/b/c/d", "is not a Hub data set"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(spec)
    for column, message in (
        ({"label_column": "lable"}, "no label column `lable`; did you mean `label`"),
        ({"image_column": "img"}, "no image column `img`"),
        ({"id_column": "key"}, "no id column `key`"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(hub_folder, **column)
    with pytest.raises(UsageError, match="at least 1"):
        load_data(hub_folder, image_size=0)
    (tmp_path / "ok.csv").write_text("a,label\n1,0\n")
    with pytest.raises(UsageError, match="samples are arrays"):
        load_data(tmp_path / "ok.csv", image_size=8)


def test_parquet_without_labels(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encode(picture(0))], [0], names=None, label="kind")
    with pytest.raises(DataError, match="pass label_column, one of: kind"):
        load_data(tmp_path)
    assert len(load_data(tmp_path, label_column="kind")) == 1


def test_the_catalogue_needs_no_torch():
    code = (
        "import sys, expunge.data as d; d.DATASETS.cards(); "
        "print([m for m in ('torch', 'sklearn', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DATASETS.names())
def test_catalogue_is_consistent(name):
    known = DATASETS.load(name)
    assert len(known.mean) == len(known.std) == known.shape[0]
    assert all(0 < m < 1 for m in (*known.mean, *known.std))
    assert not known.classes or len(known.classes) == known.num_classes
    assert known.licence


@pytest.mark.parametrize(
    ("name", "shape", "sizes"), [("mnist", (1, 28, 28), (60_000, 10_000)), ("cifar10", (3, 32, 32), (50_000, 10_000))]
)
def test_real_data(real_data, name, shape, sizes):
    test = load_data(real_data / name, split="test")
    known = DATASETS.load(name)
    assert test.input_shape == shape
    assert len(test) == sizes[1]
    assert test.store.classes == known.classes
    assert test.store.normalisation.mean == known.mean
    if name == "mnist":
        assert test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert test.y.bincount().tolist() == [1000] * 10
    x = test.inputs()
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
