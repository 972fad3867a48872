"""The folder that a deletion desk works in: settings, keys, ledger, model versions, case files.

expunge.yaml      settings, written by `expunge init`, edited by hand
ledger.sqlite     the ledger, unless `ledger` or $EXPUNGE_LEDGER names a PostgreSQL server
members.txt       who the first model was trained on, by keyed hash
keys/             the pepper of all hashes, the signing key, its public half
models/           one file per model version, by content hash
cases/            one signed case file per fulfilment, with its page and PDF, and the signed records of purges
copies/           what forgotten samples look like, by keyed hash, so that copies of them are found
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import field_validator

from expunge.core.errors import UsageError
from expunge.core.files import write_text
from expunge.core.options import Field, build, options, to_dict
from expunge.core.yaml_text import read_yaml
from expunge.evidence import explain
from expunge.requests.ledger.lineage import Retention
from expunge.requests.service.limits import ServiceLimits
from expunge.training.advice import Limits

SETTINGS, LEDGER, MEMBERS = "expunge.yaml", "ledger.sqlite", "members.txt"
LEDGER_VARIABLE = "EXPUNGE_LEDGER"
RETIRED, SUCCESSOR = "forgotten (weak)", explain.INDISTINGUISHABLE  # a verdict of version 0.1, and what it said


@options
class WorkspaceSettings:
    """What a workspace knows: the model, its data, how the audit is done, and what counts as good enough."""

    model: str = Field(..., description="catalogue name, package.module:function or path/to/file.py:function")
    model_options: dict[str, Any] = Field(default_factory=dict, description="model options as name=value")
    data: str = Field(..., description="what the model was trained on, as for `expunge train`")
    data_options: dict[str, Any] = Field(default_factory=dict, description="of the data, as for `expunge train`")
    id_column: str = Field("id", description="column that says whose a sample is; `id`: every sample is its own")
    test: str | None = Field(None, description="data that no model was trained on; default: the test part of the data")
    recipe: dict[str, Any] | None = Field(None, description="how the model was trained, for retraining and references")
    shards: Path | None = Field(None, description="folder of the sharded training (SISA) that made the model")
    ledger: str | None = Field(None, description="database URL, e.g. postgresql://user@host/name; default: SQLite here")
    budget_seconds: float | None = Field(None, gt=0, description="time that one fulfilment may take")
    references: int = Field(0, ge=0, description="models retrained for each audit; 0 gives the weaker verdict")
    shadows: int = Field(0, ge=0, description="shadow models for each audit; 64 recommended")
    residue: bool = Field(True, description="run the feature-level audit; without it no verdict is `forgotten`")
    accept: list[str] = Field(
        [explain.FORGOTTEN, explain.INDISTINGUISHABLE, explain.OPEN],
        description="verdicts that fulfil a request; `forgotten` includes `forgotten by construction`",
    )
    max_drop: float = Field(
        0.05, ge=0, le=1, description="accuracy on retained or unseen samples that a fulfilment may cost at most"
    )
    any_accuracy: bool = Field(False, description="take a model that answers its training data no better than chance")
    service: dict[str, float] = Field(default_factory=dict, description="limits of `expunge requests serve`")
    outside: list[str] = Field(
        default_factory=list, description="what else was made of the data (runs, studies); `purge` only names it"
    )
    fallback: Literal["none", "retrain"] = Field(
        "none", description="what is done after another verdict: the fulfilment fails, or the model is retrained"
    )
    margins: dict[str, float] = Field(default_factory=dict, description="differences that count as none in the audit")
    retention: dict[str, float] = Field(default_factory=dict, description="how long older versions are kept")
    limits: dict[str, float] = Field(default_factory=dict, description="drift at which retraining is advised")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    @field_validator("accept")
    @classmethod
    def _known_words(cls, words: list[str]) -> list[str]:
        for word in words:
            if word not in explain.VERDICT_MEANINGS:
                raise ValueError(f"knows no verdict `{word}`; allowed: {', '.join(explain.VERDICT_MEANINGS)}")
        return words


@dataclass(frozen=True)
class Layout:
    """A folder with settings, and where in it what lies; nothing in it is opened before it is asked for."""

    folder: Path
    settings: WorkspaceSettings

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises `UsageError` where `expunge init` was not run, or where the settings cannot be read."""
        path = folder / SETTINGS
        try:
            _migrate(path)
            values = read_yaml(path)
        except FileNotFoundError:
            raise UsageError(
                f"{folder} is no workspace (there is no {SETTINGS}); run `expunge init` there, or pass --workspace."
            ) from None
        try:
            return cls(folder, resolved(build(WorkspaceSettings, values, "settings"), folder)).checked()
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    def checked(self) -> Self:
        """Raises `UsageError` for settings that their class refuses."""
        _ = self.retention, self.limits
        build(ServiceLimits, self.settings.service, "service")
        return self

    def write(self) -> None:
        """The settings as YAML, without those that are as by default."""
        plain = to_dict(build(WorkspaceSettings, {"model": self.settings.model, "data": self.settings.data}))
        values = {k: v for k, v in to_dict(self.settings).items() if k in ("model", "data") or v != plain[k]}
        write_text(self.folder / SETTINGS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def cases(self) -> Path:
        return self.folder / "cases"

    @property
    def copies(self) -> Path:
        return self.folder / "copies"

    @property
    def ledger_url(self) -> str:
        """$EXPUNGE_LEDGER, else the setting, else a file here: passwords need not stand in the settings."""
        return os.environ.get(LEDGER_VARIABLE) or self.settings.ledger or f"sqlite:///{self.folder / LEDGER}"

    @property
    def retention(self) -> Retention:
        return build(Retention, self.settings.retention)

    @property
    def limits(self) -> Limits:
        return build(Limits, self.settings.limits)


def resolved(settings: WorkspaceSettings, folder: Path) -> WorkspaceSettings:
    """Settings whose relative paths are relative to `folder`, made absolute; names (of models, data sets) stay names.

    A relative path that does not exist below `folder` stays as it is, the error about it shows what was written.
    """

    def absolute(path: str) -> str:
        place = folder / path
        return str(place.resolve()) if path and not Path(path).is_absolute() and place.exists() else path

    file, colon, function = settings.model.rpartition(":")
    return dataclasses.replace(
        settings,
        model=f"{absolute(file)}{colon}{function}" if file.endswith(".py") else settings.model,
        data=absolute(settings.data),
        test=None if settings.test is None else absolute(settings.test),
        shards=None if settings.shards is None else Path(absolute(str(settings.shards))),
        ledger=_ledger(settings.ledger, absolute),
        outside=[absolute(path) for path in settings.outside],
    )


def _ledger(url: str | None, absolute: Callable[[str], str]) -> str | None:
    """A relative SQLite file is relative to the workspace; other URLs stay."""
    prefix = "sqlite:///"
    return f"{prefix}{absolute(url.removeprefix(prefix))}" if url is not None and url.startswith(prefix) else url


def _migrate(path: Path) -> None:
    """Replace the retired verdict in settings of version 0.1, whose old text is kept beside them as `.0.1.bak`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if RETIRED not in text or "\N{REPLACEMENT CHARACTER}" in text:
        return
    write_text(path.with_name(f"{path.name}.0.1.bak"), text)
    write_text(path, text.replace(RETIRED, SUCCESSOR))
