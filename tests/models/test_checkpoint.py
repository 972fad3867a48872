"""Weights on disk: what comes back is what was saved, and a hostile file is refused before anything of it runs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pickle
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from expunge.core.errors import CheckpointError, ExpungeError
from expunge.models.checkpoint import load_weights, read_metadata, read_weights, save_weights, weights_hash
from tests.models.test_architectures import small


def net(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def test_others_may_read_what_was_saved(tmp_path: Path) -> None:
    assert save_weights(net(), tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o644


def other(classes: int = 3) -> nn.Sequential:
    made = net(classes)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(1)
    return made


def test_round_trip_with_metadata(tmp_path: Path) -> None:
    path = save_weights(net(), tmp_path / "new" / "m.safetensors", {"made_by": "test"})
    target = other()
    assert weights_hash(target) != weights_hash(net())
    assert load_weights(target, path) is target
    assert weights_hash(target) == weights_hash(net())
    assert read_metadata(path) == {"made_by": "test"}
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = save_weights(net(), tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.data = torch.arange(6.0)[::2]
    path = save_weights(model, tmp_path / "m.safetensors")
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fresh[1].weight = fresh[0].weight
    assert weights_hash(load_weights(fresh, path)) == weights_hash(model)
    assert fresh[1].weight is fresh[0].weight


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("suffix", ["pt", "pth", "PT", "bin"])
def test_torch_files(wrap: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    torch.save(wrap(net().state_dict()), path)
    assert weights_hash(load_weights(other(), path)) == weights_hash(net())
    assert read_metadata(path) == {}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({prefix + name: value for name, value in net().state_dict().items()}, path)
    assert weights_hash(load_weights(other(), path)) == weights_hash(net())


def test_a_model_that_has_such_a_name_itself_keeps_it(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    path = save_weights(model, tmp_path / "m.safetensors")
    assert weights_hash(load_weights(nn.ModuleDict({"module": nn.Linear(2, 2)}), path)) == weights_hash(model)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = save_weights(net(), tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing 4.weight, 4.bias; unexpected 0.bias, 0.weight, 1.bias and 6 more"
    ):
        load_weights(nn.Sequential(*[nn.Identity()] * 4, nn.Linear(2, 2)), path)
    wide = net()
    wide[0] = nn.Conv2d(1, 4, 5)
    before = weights_hash(wide)
    with pytest.raises(
        CheckpointError,
        match=r"0.weight is \(4, 1, 3, 3\), the model has \(4, 1, 5, 5\). Check the architecture",
    ):
        load_weights(wide, path)
    assert weights_hash(wide) == before


def test_another_number_of_classes_is_said_so(tmp_path: Path) -> None:
    path = save_weights(net(7), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="was made for 7 classes, the model for 3"):
        load_weights(net(3), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in net().state_dict().items()}
    state["3.bias"][1] = value
    save_file(state, tmp_path / "m.safetensors")
    target = other()
    before = weights_hash(target)
    with pytest.raises(CheckpointError, match=r"tensor `3\.bias` holds NaN or infinite values"):
        load_weights(target, tmp_path / "m.safetensors")
    assert weights_hash(target) == before


def test_types_without_a_finiteness_test_can_be_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "m.safetensors")
    assert read_weights(tmp_path / "m.safetensors")["a"].dtype == torch.float8_e4m3fn


class Evil:
    """Pickles into a call that leaves a trace."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def write_pickle(content: Any, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("where", ["root", "among weights"])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle 2", "pickle 5"])
def test_a_pickle_with_code_is_refused_and_does_not_run(where: str, how: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    content: Any = Evil(mark) if where == "root" else {"a": torch.ones(2), "b": Evil(mark)}
    path = tmp_path / "m.pt"
    if how.startswith("pickle"):
        write_pickle(content, path, int(how[-1]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint|holds code") as error:
        read_weights(path)
    assert not mark.exists()
    assert "\n" not in str(error.value)


def test_the_mark_would_be_seen(tmp_path: Path) -> None:
    """The test above can fail: an ordinary unpickler runs the code."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_objects_beside_the_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"state_dict": net().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"\(`argparse.Namespace`\).*torch.save\(model.state_dict\(\), path\)"):
        read_weights(tmp_path / "m.pt")
    torch.save(net(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"holds code or objects .*torch.save\(model.state_dict\(\), path\)"):
        read_weights(tmp_path / "m.pt")


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch.jit is deprecated
        torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)).save(str(path))
    with pytest.raises(CheckpointError, match="is a TorchScript archive, which holds code"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.ones(2), {"state_dict": {}}])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "m.pt")


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"unknown type; allowed: .safetensors, .pt"):
        read_weights(tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_metadata(tmp_path / "m.safetensors")


def variants(tmp: Path) -> dict[str, bytes]:
    save_weights(net(), tmp / "a.safetensors")
    torch.save(net().state_dict(), tmp / "a.pt")
    torch.save(net().state_dict(), tmp / "b.pt", _use_new_zipfile_serialization=False)
    return {name: (tmp / name).read_bytes() for name in ("a.safetensors", "a.pt", "b.pt")}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return variants(tmp_path_factory.mktemp("originals"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "b.pt"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_load_or_are_refused(name: str, originals: dict[str, bytes], tmp_path: Path, data: Any) -> None:
    """Truncated anywhere, or bytes changed anywhere: weights or a `CheckpointError`, never another exception."""
    raw = bytearray(originals[name])
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, min(len(raw), 2000) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(bytes(raw))
    with contextlib.suppress(CheckpointError):
        assert read_weights(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_foreign_bytes_are_refused(suffix: str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_weights(path)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes: writes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(net(), path)
    before = path.read_bytes()
    model, _ = small("cnn")
    with full_disk(), pytest.raises(ExpungeError, match=r"cannot write .*m.safetensors"):
        save_weights(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_part_is_left_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights(net(), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_device_reports_no_space_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExpungeError, match=r"No space left on device.*free some space"):
        save_weights(net(), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpungeError, match="choose another folder"):
        save_weights(net(), tmp_path / "file" / "m.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ExpungeError, match="choose another folder"):
        save_weights(net(), tmp_path / "folder.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_the_hash_reads_names_types_shapes_and_bytes() -> None:
    def holding(**tensors: torch.Tensor) -> nn.Module:
        made = nn.Module()
        for name, value in tensors.items():
            made.register_buffer(name, value)
        return made

    zeros = torch.zeros(4)
    same = [holding(a=zeros, b=zeros), holding(b=zeros.clone(), a=zeros)]  # the order of registration does not matter
    different = [
        holding(a=zeros, c=zeros),
        holding(a=zeros, b=zeros.view(2, 2)),
        holding(a=zeros, b=torch.zeros(4, dtype=torch.int32)),
        holding(a=zeros, b=torch.tensor([0, 0, 0, 1e-9])),
        holding(a=zeros),
    ]
    hashes = [weights_hash(model) for model in (*same, *different)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 1 + len(different)
    assert len(hashes[0]) == 64


def test_the_hash_takes_scalars_strides_and_half_precision() -> None:
    made = nn.Module()
    made.register_buffer("scalar", torch.tensor(3))
    made.register_buffer("strided", torch.arange(6.0).view(2, 3).T)
    made.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
    made.register_buffer("empty", torch.zeros(0))
    assert weights_hash(made) == weights_hash(made)


def test_an_archive_that_unpacks_to_far_more_than_it_has_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20_000_000))
    with pytest.raises(CheckpointError, match="unpack to 20,000,000"):
        read_weights(path)
