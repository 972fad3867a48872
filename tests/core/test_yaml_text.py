"""Settings as YAML: merge keys and anchors work; what is too large, too deep or given twice is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expunge.core.errors import UsageError
from expunge.core.yaml_text import parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_anchors_and_merge_keys() -> None:
    content = parse_yaml("base: &base {lr: 1e-3, epochs: 3}\nfast:\n  <<: *base\n  epochs: 1\nlist: [*base, *base]\n")
    assert content["fast"] == {"lr": 0.001, "epochs": 1}
    assert content["list"] == [content["base"]] * 2


def test_several_merged_mappings_the_first_wins() -> None:
    content = parse_yaml("a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], y: 3}\n")
    assert content["c"] == {"x": 1, "y": 3, "z": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "its aliases stand for more than"),
        ("train: {milestones: &x [" + "1, " * 30_000 + "1]}", "more than 20,000 values"),
        ("\n".join(f"k{i}: 1" for i in range(30_000)), "more than 20,000 values"),
        ("[" * 20_000 + "]" * 20_000, "nested deeper than 50"),
        ("a: " * 1 + "{b: " * 20_000, "nested deeper than 50"),
        ("a: &a [*a]", "an alias contains itself"),
        ("x" * 1_000_001, "characters; at most"),
        ("a: 1\nb: 2\na: 3", "the key `a` is given twice"),
        ("a: {b: 1, b: 2}", "the key `b` is given twice"),
        ("a: *nowhere", "found undefined alias"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
    ids=["bomb", "long list", "many keys", "deep list", "deep mapping", "circle", "long", "twice", "twice below",
         "no anchor", "code"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_before_it_is_built(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_yaml(path, "recipe")


def test_a_fault_is_located(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UsageError, match=r"settings\.yaml is not valid YAML in line 3"):
        read_yaml(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 3\)"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "3: x\n", "plain text"])
def test_anything_but_a_mapping_with_text_keys_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="must be a mapping"):
        read_yaml(path)


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_values_are_read_as_in_other_yaml() -> None:
    text = "a: 1e-3\nb: 0.5\nc: true\nd: null\ne: 2020-01-31\nf: '007'\n"
    assert parse_yaml(text) == {**yaml.safe_load(text), "a": 0.001}
