"""`expunge cache` as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expunge.core.entries import entries, record
from expunge.core.run import Run
from expunge.data.convert import as_split
from expunge.data.duplicates import content_hashes
from expunge.evidence.shadows import make_plan, shadow_scores
from expunge.memorisation.dynamics import record_dynamics
from expunge.models.build import build_model
from expunge.training.cache import train_cached
from expunge.training.recipe import make_recipe
from tests.cli.conftest import Call, blobs
from tests.cli.test_listing import HEAVY

OLD = "c" * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a model, a row of numbers and an old entry of unknown origin."""
    root = tmp_path / "cache"
    monkeypatch.setenv("EXPUNGE_CACHE", str(root))
    for kind, name in (("models", "a" * 64), ("rows", "b" * 64), ("models", OLD)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        path = root / kind / f"{name}.bin"
        path.write_bytes(b"x" * 1500)
        if name == OLD:
            os.utime(path, (1_700_000_000, 1_700_000_000))
        else:
            record(path, root, data="faces", form="uint8 3x8x8", samples=np.arange(5, dtype=np.uint64))
    return root


def test_the_list_says_size_age_and_origin(cache: Path, expunge: Call) -> None:
    listed = expunge("cache", "list")
    assert listed.code == 0
    for part in ("models/aaaaaaaaaaaa", "rows/bbbbbbbbbbbb", "2023-11-14", "1.5 kB", "faces", "not known", "3 entries"):
        assert part in listed.out
    rows = json.loads(expunge("cache", "list", "--json").out)["entries"]
    assert rows[0]["key"] == OLD
    assert rows[1]["origin"]["count"] == 5
    assert "1 entry" in expunge("cache", "list", "--older-than", "30d").out
    assert "2 entries" in expunge("cache", "list", "--data", "faces").out
    assert "1 entry" in expunge("cache", "list", "--data", "-").out


def test_one_entry_is_shown_by_the_beginning_of_its_name(cache: Path, expunge: Call) -> None:
    shown = expunge("cache", "show", "rows/bbbb").out
    assert "samples: 5 (uint8 3x8x8)" in shown
    assert str(cache / "rows") in shown
    assert "there is no entry 'rows/cc'" in expunge("cache", "show", "rows/cc").err
    (cache / "rows" / f"{'a' * 64}.npz").write_text("x")
    assert "is the beginning of 2 entries" in expunge("cache", "show", "aa").err


def test_cleaning_lists_first_and_removes_with_yes(cache: Path, expunge: Call) -> None:
    assert expunge("cache", "clean").code == 2
    dry = expunge("cache", "clean", "--kind", "models")
    assert "nothing removed: 2 entries (3." in dry.out
    assert len(entries(cache)) == 3
    done = expunge("cache", "clean", "--kind", "models", "--older-than", "30d", "--yes")
    assert (done.code, "1 entry (1.5 kB) removed" in done.out) == (0, True)
    assert expunge("cache", "clean", "--data", "faces", "--yes").code == 0
    assert entries(cache) == []
    assert expunge("cache", "clean", "--all", "--yes").out == "nothing to remove\n"
    assert "such as 30d" in expunge("cache", "clean", "--older-than", "30").err
    assert "did you mean `models`" in expunge("cache", "list", "--kind", "model").err


def test_a_locked_entry_is_left_and_named(cache: Path, expunge: Call) -> None:
    from filelock import FileLock

    with FileLock(cache / "models" / f"{OLD}.lock"):
        done = expunge("cache", "clean", "--kind", "models", "--yes")
    assert done.code == 1
    assert "in use by another process" in done.err
    assert "1 entry" in done.out
    assert [entry.key for entry in entries(cache, kinds=["models"])] == [OLD]


def test_the_list_is_quick(cache: Path) -> None:
    code = (
        "import sys; from expunge.cli.main import main; code = main(['cache', 'list']);"
        f"sys.exit(str([m for m in {HEAVY} if m in sys.modules] or code or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_every_writer_says_what_its_entry_is_made_of(tmp_path: Path) -> None:
    data, unseen = (as_split(blobs(seed, 60), name=name) for seed, name in ((0, "train"), (1, "test")))
    recipe, run = make_recipe({"epochs": 1}), Run(seed=0, cache=tmp_path)
    model = build_model("mlp", num_classes=3, input_shape=(6,))
    train_cached(model, data, recipe, run)
    record_dynamics(model, data, recipe, run)
    plan = make_plan(data.take(data.index[:6]), data.take(data.index[6:]), unseen, 4)
    shadow_scores(model, plan, recipe=recipe, device="cpu", cache=tmp_path)
    hashes = content_hashes(data)
    assert hashes is not None
    kinds = set()
    for entry in entries(tmp_path):
        if entry.kind == "precision":
            continue
        kinds.add(entry.kind)
        assert entry.origin is not None, entry
        assert entry.origin.form == "float32 6"
        listed = np.frombuffer((tmp_path / "samples" / f"{entry.origin.samples}.hashes").read_bytes(), dtype="<u8")
        assert set(hashes.tolist()) <= set(listed.tolist())
    assert kinds == {"models", "rows"}
