"""Studies that come with Expunge: `expunge reproduce --list`."""

from __future__ import annotations

from pathlib import Path

from expunge.core.yaml_text import read_yaml

_INSTALLED = Path(__file__).with_name("recipes")
_CHECKOUT = Path(__file__).resolve().parents[3] / "recipes"


def recipes() -> dict[str, Path]:
    """name -> file; in a checkout they lie in `recipes/`, in an installed package beside this module."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def titles() -> dict[str, str]:
    """name -> heading of the report, for a list."""
    return {name: str(read_yaml(path, "study").get("title", "")) for name, path in recipes().items()}
