"""Folders, results and workspaces that version 0.1 wrote are read as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import expunge as ex
from expunge.api.result import Result
from expunge.core.errors import DataError
from expunge.requests.case.keys import PUBLIC, SIGNING, create_keys
from tests.cli.conftest import Call

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "v01"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture as the current folder, with a signing key of its own."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "desk" / "expunge.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("@HERE@", str(tmp_path)), encoding="utf-8")
    create_keys(tmp_path / "new")
    for name in (SIGNING, PUBLIC):
        (tmp_path / "new" / name).rename(tmp_path / "desk" / "keys" / name)
    (tmp_path / "desk" / "keys" / "pepper").chmod(0o600)
    return tmp_path


def test_a_trained_folder_knows_its_training(here: Path) -> None:
    trained = ex.load("trained")
    assert isinstance(trained, Result)
    assert trained.recipe is not None
    assert (trained.recipe.epochs, trained.seed, len(trained.history)) == (20, 0, 20)
    assert trained.train is not None
    assert len(trained.train) == 60
    assert trained.initial is not None
    result = ex.unlearn(trained, forget=ex.ids(["s3", "s9"]), method="finetune", epochs=1, device="cpu")
    assert result.forget is not None
    assert result.forget.ids.tolist() == ["s3", "s9"]


def test_an_unlearned_folder_knows_its_parent_and_its_parts(here: Path) -> None:
    result = Result.load("forgot")
    assert result.parent is not None
    assert result.forget is not None
    assert result.train is not None
    assert result.test is not None
    assert (len(result.forget), len(result.train), len(result.test)) == (3, 57, 30)
    verdict = ex.audit(result, references=2, device="cpu", resamples=20)
    assert verdict.basis == "retrained"


def test_a_folder_that_python_wrote_is_filled_in(here: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(40, 6, generator=generator), torch.arange(40) % 4)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    trained = ex.load("python", model=net, data=data)
    assert trained.recipe is not None
    assert trained.recipe.epochs == 2
    with pytest.raises(DataError, match="data are not those"):
        ex.load("python", model=net, data=(data[0] + 1, data[1]))


def test_data_that_changed_are_not_taken_for_those_of_the_folder(here: Path) -> None:
    rows = (here / "rows.csv").read_text(encoding="utf-8").splitlines()
    (here / "rows.csv").write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"data are not those|the data changed"):
        ex.load("trained")


def test_a_request_of_a_workspace_is_fulfilled(here: Path, expunge: Call) -> None:
    done = expunge("requests", "fulfil", "--workspace", here / "desk")
    assert done.code == 0, done.err
    assert "fulfilment 1 (1 request, 2 samples)" in done.out
