"""Identity of code: an edited line is seen, wherever it stands; what does not run is not."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from expunge.core.identity import code_hash

NET = """from torch import nn
from helper import scale

class Net(nn.Linear):
    def forward(self, x):
        return {}
"""
HELPER = "import deep.part\n\ndef scale(x):\n    return deep.part.FACTOR * x\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET.format("scale(super().forward(x))"))
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("")
    (tmp_path / "deep" / "part.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def fresh() -> ModuleType:
    """The module as a new process would import it."""
    for name in ("net", "helper", "deep", "deep.part"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("net")


def test_one_line_in_the_file_or_in_what_it_imports_is_seen(project: Path) -> None:
    before = code_hash(fresh().Net)
    assert code_hash(fresh().Net) == before
    (project / "other.py").write_text("x = 2\n")
    assert code_hash(fresh().Net) == before
    seen = {before}
    for file, old, new in (
        ("net.py", "scale(super().forward(x))", "super().forward(x)"),
        ("helper.py", "FACTOR * x", "FACTOR * x + 1"),
        ("deep/part.py", "2.0", "3.0"),
        ("deep/__init__.py", "", "import math\n"),
    ):
        path = project / file
        path.write_text(path.read_text().replace(old, new, 1))
        seen.add(code_hash(fresh().Net))
    assert len(seen) == 5


def test_what_was_loaded_counts_and_not_what_is_edited_later(project: Path) -> None:
    loaded = fresh().Net
    before = code_hash(loaded)
    (project / "net.py").write_text(NET.format("x"))
    assert code_hash(loaded) == before
    assert code_hash(fresh().Net) != before


def test_the_place_does_not_count(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = "import sys; sys.path.insert(0, sys.argv[1]); import net; from expunge.core.identity import code_hash; "
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    subprocess.run(["cp", "-r", str(project), str(elsewhere)], check=True)
    told = [
        subprocess.run(
            [sys.executable, "-c", command + "print(code_hash(net.Net))", str(folder)],
            check=True, capture_output=True, text=True,
        ).stdout
        for folder in (project, elsewhere)
    ]  # fmt: skip
    assert told[0] == told[1] == code_hash(fresh().Net) + "\n"


def notebook(source: str) -> ModuleType:
    """Code that no file holds."""
    cell = ModuleType("cell")
    exec(compile(source, "<cell>", "exec"), cell.__dict__)
    return cell


def test_code_without_a_file() -> None:
    source = "K = 2\ndef inner(x):\n    return x * K\nclass Net:\n    def forward(self, x):\n        return inner(x)\n"
    before = code_hash(notebook(source).Net)
    assert code_hash(notebook(source).Net) == before
    for old, new in (("K = 2", "K = 3"), ("x * K", "x + K"), ("inner(x)\n", "-inner(x)\n")):
        assert code_hash(notebook(source.replace(old, new)).Net) != before


def test_modules_of_expunge_with_what_they_import() -> None:
    from expunge.core import identity

    closure = identity._own_closure("expunge.training.loop")
    assert {"expunge.training.loop", "expunge.data.split", "expunge.models.modes", "expunge.core.seeds"} <= set(closure)
    assert not any(name.startswith(("expunge.cli", "expunge.report", "expunge.metrics")) for name in closure)
    assert code_hash("expunge.training.loop") != code_hash("expunge.training.stacked")
    assert code_hash("expunge.no_such_module") == code_hash()


def test_docstrings_of_expunge_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.core import identity

    read = Path.read_text
    hash_of = identity._own_module.__wrapped__
    before = hash_of("expunge.core.seeds")[0]

    def edited(change: tuple[str, str]) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda self, **more: read(self, **more).replace(*change))
            return str(hash_of("expunge.core.seeds")[0])

    first_line = read(Path(identity.__file__).with_name("seeds.py")).splitlines()[0]
    assert edited((first_line, '"""Other words."""' if first_line.endswith('"""') else '"""Other words.')) == before
    assert edited(("def derive(", "def derive_(")) != before
