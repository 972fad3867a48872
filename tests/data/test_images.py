"""Images of every kind: modes, orientation, and files that rows of a table name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.core.errors import DataError, UsageError
from expunge.data import images as images_module
from expunge.data.convert import as_split
from expunge.data.sources import load_data, load_pair

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOUR = np.stack([GREY, GREY.max() - GREY, GREY // 2], axis=-1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder(root: Path, *pictures: Image.Image) -> Path:
    (root / "a").mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(root / "a" / f"{number}.png")
    return root


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "PA"])
def test_modes_become_grey_or_colour(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOUR).convert(mode)
    if mode == "PA":
        picture = Image.fromarray(COLOUR).convert("P").convert("RGBA")
    grey = mode in ("1", "L", "LA")
    train = load_data(folder(tmp_path, picture))
    assert train.input_shape == ((1 if grey else 3), 4, 6)
    both = [load_data(tmp_path, mode=name).store.samples[0].numpy() for name in ("L", "RGB")]
    assert [samples.shape[0] for samples in both] == [1, 3]
    if grey:
        assert np.array_equal(both[1], np.repeat(both[0], 3, axis=0))


def test_mixed_modes_keep_colour(tmp_path: Path) -> None:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    folder(tmp_path, grey, grey, grey, colour)
    train = load_data(tmp_path)
    assert train.input_shape == (3, 4, 6)
    assert np.array_equal(train.store.samples[3].numpy(), COLOUR.transpose(2, 0, 1))
    assert np.array_equal(train.store.samples[0].numpy(), np.stack([GREY] * 3))
    assert load_data(tmp_path, mode="l").input_shape == (1, 4, 6)
    with pytest.raises(UsageError, match="unknown mode `CMYK`; allowed: L"):
        load_data(tmp_path, mode="CMYK")


def test_colour_that_the_probes_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    monkeypatch.setattr(images_module, "PROBES", 2)
    folder(tmp_path / "train", grey, colour, grey)
    folder(tmp_path / "test", grey, grey, grey)
    train, test = load_pair(tmp_path)
    assert train.input_shape == test.input_shape == (3, 4, 6)
    assert np.array_equal(train.store.samples[1].numpy(), COLOUR.transpose(2, 0, 1))
    monkeypatch.setenv("EXPUNGE_RESIDENT_BYTES", "10")
    with pytest.raises(DataError, match=r"1\.png: the image has colour, others are grey; pass mode=RGB"):
        list(load_pair(tmp_path)[0].batches(3))
    assert next(iter(load_pair(tmp_path, mode="RGB")[0].batches(3))).x.shape == (3, 3, 4, 6)


def test_all_parts_have_the_channels_of_one(tmp_path: Path) -> None:
    folder(tmp_path / "train", Image.fromarray(GREY))
    folder(tmp_path / "test", Image.fromarray(COLOUR))
    train, test = load_pair(tmp_path)
    assert train.input_shape == test.input_shape == (3, 4, 6)
    assert load_data(tmp_path).input_shape == (3, 4, 6)


def test_constants_for_colour_read_grey_images_in_colour(tmp_path: Path) -> None:
    folder(tmp_path, Image.fromarray(GREY))
    assert load_data(tmp_path, normalise="imagenet").input_shape == (3, 4, 6)
    with pytest.raises(UsageError, match="for colour images"):
        load_data(tmp_path, normalise="imagenet", mode="L")


def test_deep_pixels_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 100))
    with pytest.raises(DataError, match=r"0\.png: I;16 pixels; convert the images to 8 bits"):
        load_data(tmp_path)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_by_every_loader(tmp_path: Path, turn: int) -> None:
    upright = Image.fromarray(COLOUR)
    undo = {value: key for key, value in {6: 8, 8: 6}.items()}.get(turn, turn)
    stored = upright if turn == 1 else upright.transpose(images_module._TURNS[undo])
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encoded(stored, exif=exif)
    (tmp_path / "f" / "a").mkdir(parents=True)
    (tmp_path / "f" / "a" / "0.png").write_bytes(content)
    image = {"bytes": content, "path": None}
    pq.write_table(pa.table({"image": [image], "label": [0]}), tmp_path / "t.parquet")
    (tmp_path / "l.csv").write_text("file_name,label\nf/a/0.png,0\n")
    wanted = COLOUR.transpose(2, 0, 1)
    for source in (tmp_path / "f", tmp_path / "t.parquet", tmp_path / "l.csv"):
        assert np.array_equal(load_data(source).store.samples[0].numpy(), wanted), source
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": [image], "label": [0]}, features=features)
    assert np.array_equal(as_split(data).store.samples[0].numpy(), wanted)
    assert np.array_equal(np.asarray(data[0]["image"]).transpose(2, 0, 1), wanted)


def test_damaged_orientation_does_not_matter(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0garbage", quality=100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(content)
    assert load_data(tmp_path).input_shape == (3, 4, 6)


def rows(tmp_path: Path, *names: str | None) -> Path:
    """A data folder whose table names files; there is a picture inside it and one beside it."""
    home = tmp_path / "data"
    (home / "pictures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(GREY).save(home / "pictures" / "in.png")
    (tmp_path / "outside").mkdir(exist_ok=True)
    Image.fromarray(GREY).save(tmp_path / "outside" / "secret.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": name} for name in names], kind)
    pq.write_table(pa.table({"image": images, "label": [i % 2 for i in range(len(names))]}), home / "train.parquet")
    return home


@pytest.mark.parametrize(
    "bad", ["../outside/secret.png", "/etc/hostname", "pictures/../../secret.png", "link.png", "link/secret.png"]
)
@pytest.mark.parametrize("first", [True, False])
def test_rows_name_only_files_below_their_table(tmp_path: Path, bad: str, first: bool) -> None:
    home = rows(tmp_path, *((bad, "pictures/in.png") if first else ("pictures/in.png", bad)))
    (home / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (home / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=rf"row {0 if first else 1}: the row names the file .*, which is not below"):
        load_data(home)


def test_files_that_rows_name_belong_to_the_content(tmp_path: Path) -> None:
    home = rows(tmp_path, "pictures/in.png", str(tmp_path / "data" / "pictures" / "in.png"))
    before = load_data(home, cache=tmp_path / "cache")
    assert np.array_equal(before.store.samples[0, 0].numpy(), GREY)
    Image.fromarray(GREY[::-1].copy()).save(home / "pictures" / "in.png")
    after = load_data(home, cache=tmp_path / "cache")
    assert np.array_equal(after.store.samples[0, 0].numpy(), GREY[::-1])
    assert before.content_hash() != after.content_hash()


@pytest.mark.parametrize("name", [None, "", "pictures/none.png", "pictures", "a\0b"])
def test_rows_without_a_picture(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(DataError, match=r"row 1: (the image is empty|cannot be opened)|cannot read"):
        load_data(rows(tmp_path, "pictures/in.png", name))
