"""From a name or a user's factory to a model: what is passed, what is refused, what stays untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.models.build import build_model

SHAPE = (1, 8, 8)
GOOD = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, hidden: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, hidden, 3)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def shaped(num_classes, *, input_shape, **more):
    made = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[-1] ** 2, num_classes))
    made.more = more
    return made

def broken(num_classes): raise KeyError("lost")
def needy(num_classes, depth): return nn.Linear(1, 1)
def no_module(num_classes): return {"a": 1}
"""


@pytest.fixture(autouse=True)
def _import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_same_seed_same_bits_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    a, b, c = (build_model("small-cnn", num_classes=3, input_shape=SHAPE, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_the_global_state_stays_after_a_failure(file: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(UsageError):
        build_model(f"{file}:broken", num_classes=3, input_shape=SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_class_in_a_file_gets_what_its_signature_names(file: Path) -> None:
    model = build_model(f"{file}:Net", num_classes=4, input_shape=SHAPE, options={"hidden": "6"})
    assert model(torch.rand(2, *SHAPE)).shape == (2, 4)
    assert model.get_parameter("stem.weight").shape == (6, 1, 3, 3)


def test_factories_with_no_arguments_and_with_any(file: Path) -> None:
    assert isinstance(build_model(f"{file}:fixed", num_classes=4, input_shape=SHAPE), nn.Sequential)
    model = build_model(f"{file}:shaped", num_classes=4, input_shape=SHAPE, options={"extra": 1})
    assert model.more == {"extra": 1}


def test_a_file_runs_once_until_it_changes(file: Path) -> None:
    def built() -> type:
        return type(build_model(f"{file}:Net", num_classes=4, input_shape=SHAPE))

    first = built()
    assert built() is first
    file.write_text(GOOD.replace("hidden: int = 5", "hidden: int = 9"))
    assert built() is not first


def test_an_edit_of_equal_length_within_the_second_runs(tmp_path: Path) -> None:
    """Stored bytecode is valid for a size and a whole second: here both stay."""
    path = tmp_path / "edited.py"
    kinds = []
    for kind in ("Hardtanh", "Softplus"):
        path.write_text(f"from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.{kind}())\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        kinds.append(type(build_model(f"{path}:net", num_classes=3, input_shape=SHAPE)[1]).__name__)
    assert kinds == ["Hardtanh", "Softplus"]


def test_an_edited_neighbour_runs_in_the_next_process(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from neighbour import kind\n")
    script = "import sys; from expunge.core.user_code import load_user_code as load; print(load(sys.argv[1], 'model'))"
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    kinds = []
    for kind in ("relu", "gelu"):
        (tmp_path / "neighbour.py").write_text(f"kind = '{kind}'\n")
        os.utime(tmp_path / "neighbour.py", (1_700_000_000, 1_700_000_000))
        command = [sys.executable, "-c", script, str(tmp_path / "net.py:kind")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=writing)
        kinds.append(done.stdout.strip())
    assert kinds == ["relu", "gelu"]


def test_two_files_of_one_name_do_not_meet(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text("from torch import nn\ndef fixed(): return nn.Linear(2, 2)\n")
    assert isinstance(build_model(f"{other}:fixed", num_classes=4, input_shape=SHAPE), nn.Linear)
    assert isinstance(build_model(f"{file}:fixed", num_classes=4, input_shape=SHAPE), nn.Sequential)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "neighbour_blocks.py").write_text("WIDTH = 7\n")
    (folder / "net.py").write_text(
        "from torch import nn\nfrom neighbour_blocks import WIDTH\ndef make(): return nn.Linear(1, WIDTH)\n"
    )
    made = build_model("sub/net.py:make", num_classes=4, input_shape=SHAPE)
    assert made.get_parameter("weight").shape == (7, 1)


def test_packages_come_from_the_current_folder(tmp_path: Path) -> None:
    package = tmp_path / "some_users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(GOOD)
    model = build_model("some_users_package.nets:Net", num_classes=2, input_shape=SHAPE)
    assert model(torch.rand(1, *SHAPE)).shape == (1, 2)


BROKEN = [
    ("small-cn", "unknown model `small-cn`; did you mean `small-cnn`"),
    ("mine.py:Nat", "has no function or class `Nat`; did you mean `Net`"),
    ("gone.py:f", "model file gone.py does not exist"),
    ("mine.py:broken", "cannot be built with .*KeyError: 'lost'"),
    ("mine.py:needy", "needs the option `depth`, which was not given"),
    ("mine.py:no_module", r"must return a torch.nn.Module, it returned dict"),
    ("syntax.py:f", "model file .*syntax.py cannot be imported: SyntaxError"),
    ("exits.py:f", "model file .*exits.py cannot be imported: SystemExit"),
    ("module_that_is_nowhere:f", "module `module_that_is_nowhere` cannot be imported"),
    ("module_with_a_fault:f", "module `module_with_a_fault` cannot be imported .NameError"),
    (":f", "`` is neither a module nor a .py file"),
    ("..x:f", "`..x` is neither a module nor a .py file"),
    ("builtins:dict", "`builtins:dict` has no signature to read"),
]


@pytest.mark.parametrize(("spec", "message"), BROKEN)
def test_faults_are_one_sentence(spec: str, message: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "module_with_a_fault.py").write_text("undefined_name\n")
    with pytest.raises(UsageError, match=message):
        build_model(spec, num_classes=3, input_shape=SHAPE)


@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten"])
def test_bad_numbers_of_classes(classes: int) -> None:
    with pytest.raises(UsageError, match="number of classes must be a whole number >= 1"):
        build_model("mlp", num_classes=classes, input_shape=SHAPE)


@pytest.mark.parametrize("shape", [(), (0, 3), (1.5,)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="input shape must be whole numbers >= 1"):
        build_model("mlp", num_classes=2, input_shape=shape)
