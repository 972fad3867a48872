"""The settings of one command. These classes are the option names, the keys of a YAML file, the defaults and the help.

Paths and data are read relative to the current folder, also when they stand in a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from expunge.core.options import Field, options

_MODEL = "catalogue name (`expunge list models`), package.module:function or path/to/file.py:function"
_MODEL_OPTIONS = "model options as name=value, e.g. width=0.4"
_DATA = "catalogue name, hf:owner/name, folder of Parquet, CSV or image files, .parquet, .npz, .npy or .csv file"
_DATA_OPTIONS = (
    "as name=value: normalise (standard, none, computed, imagenet, half), image_size, mode (RGB, L), classes (cat,dog "
    "or 1..10), id_column, label_column, image_column, metadata (columns that are no features)"
)
_TEST = "data never trained on; default: the test part of the data, if there is one"
_RAW = "write text cells of CSV files as they are, also those that a spreadsheet takes for a formula (= + - @)"
_FORGET = "the forget set: class:cat, random:0.1, ids:0005,0017, ids:file.csv, index:3,17, where:user==4711, .."
_DEVICE = "auto, cpu, cuda or cuda:N"


@options
class Train:
    """Settings of `expunge train`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    data: str = Field(..., description=_DATA)
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    out: Path = Field(..., description="folder for weights, facts and history")
    checkpoint: Path | None = Field(None, description="weights to start from; default: a fresh initialisation")
    forget: str | None = Field(None, description=f"{_FORGET}; only with `on`, or for the labels of `noisy`")
    on: Literal["all", "retain"] = Field("all", description="train on all data, or without those of `forget`")
    holdout: float = Field(0.0, ge=0, lt=1, description="fraction kept out of training, for `unlearn` to validate on")
    options: dict[str, Any] = Field(default_factory=dict, description="recipe options, see `expunge show recipe`")
    seed: int = Field(0, ge=0, description="of initial weights and order")
    split_seed: int = Field(0, ge=0, description="of `forget` and `holdout`")
    device: str = Field("auto", description=_DEVICE)
    importance: str | None = Field(
        None, description="method of the SSD family: keep what it needs of the training data (`--importance stored`)"
    )
    overwrite: bool = Field(False, description="replace a result made with other settings")
    force: bool = Field(False, description="do finished work again, and take no trained model from the cache")


@options
class Unlearn:
    """Settings of `expunge unlearn`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    checkpoint: Path = Field(..., description="weights of the trained model, safetensors or a plain state dict")
    data: str = Field(..., description=f"what the model was trained on: {_DATA}")
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    forget: str = Field(..., description=_FORGET)
    method: str = Field(
        "auto", description="name or name/preset (`expunge list methods`); `auto`: by what is at hand and was measured"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="method options, see `expunge show method NAME`")
    out: Path = Field(..., description="folder for weights, facts, scores and the report")
    test: str | None = Field(None, description=_TEST)
    validation: str | None = Field(None, description="held-out data of their own (`rewind` needs them)")
    test_held_out: float = Field(
        0.5, ge=0, lt=1, description="share of the test samples held out where nothing else is; the rest measures"
    )
    recipe: Path | None = Field(None, description="YAML of the training; default: result.json beside the checkpoint")
    initial: Path | None = Field(None, description="weights the training started from, for methods that need them")
    retrain: bool = Field(False, description="also train the exact reference, kept in the cache, and compare with it")
    metrics: list[str] | None = Field(None, description="default: every one whose inputs are there")
    seed: int = Field(0, ge=0, description="of unlearning")
    split_seed: int = Field(0, ge=0, description="of `forget`")
    device: str = Field("auto", description=_DEVICE)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of forward and backward passes; auto: bfloat16 where it is measurably faster"
    )
    compile: bool = Field(False, description="compile the passes: takes a minute, pays in long runs only")
    budget_seconds: float | None = Field(None, gt=0, description="stop after the epoch that exceeds it")
    yes: bool = Field(False, description="begin what takes more than an hour without asking")
    overwrite: bool = Field(False, description="replace a result made with other settings")
    force: bool = Field(False, description="do finished work again, and take no trained model from the cache")


@options
class Evaluate:
    """Settings of `expunge evaluate`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    original: Path | None = Field(None, description="weights before unlearning")
    unlearned: Path | None = Field(None, description="weights after it")
    retrained: Path | None = Field(None, description="weights of the exact reference")
    data: str = Field(..., description=f"what the original was trained on: {_DATA}")
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    forget: str = Field(..., description=_FORGET)
    test: str | None = Field(None, description=_TEST)
    metrics: list[str] | None = Field(None, description="default: every one whose inputs are there")
    csv: Path | None = Field(None, description="write the tidy table here")
    raw: bool = Field(False, description=_RAW)
    json: bool = Field(False, description="print the tidy table as JSON instead")
    seed: int = Field(0, ge=0, description="of the evaluation (attacks, intervals)")
    split_seed: int = Field(0, ge=0, description="of `forget`")
    device: str = Field("auto", description=_DEVICE)


@options
class Audit:
    """Settings of `expunge audit`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    original: Path = Field(..., description="weights before unlearning")
    unlearned: Path = Field(..., description="weights after it")
    data: str = Field(..., description=f"what the original was trained on: {_DATA}")
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    forget: str = Field(..., description=_FORGET)
    out: Path = Field(..., description="folder for verdict.json and the tables")
    test: str | None = Field(None, description=_TEST)
    references: str | None = Field(
        None,
        description="models trained without the forget set: how many to train now (kept in the cache; 5 say something) "
        "or their files and folders, separated by commas",
    )
    retrained: Path | None = Field(None, description="older name of a folder of `references`")
    retrain: int = Field(0, ge=0, description="older name of a number of `references`")
    recipe: Path | None = Field(None, description="YAML of the training; default: result.json beside the original")
    shadows: int = Field(0, ge=0, description="number of shadow models for per-sample attacks, even; 64 recommended")
    design: Literal["matched", "halves"] = Field(
        "matched", description="shadow models train on all retained samples, or on a random half of everything"
    )
    requests: int = Field(1, ge=1, description="forget sets per shadow, with design=halves")
    jobs: int = Field(1, ge=1, description="shadow models trained at the same time, one thread each")
    method: str | None = Field(None, description="what unlearned, for the shadows; default: result.json beside it")
    options: dict[str, Any] = Field(default_factory=dict, description="options of `method`, name=value")
    margin_accuracy: float = Field(0.05, gt=0, lt=0.5, description="difference in accuracy that counts as none")
    margin_auc: float = Field(0.05, gt=0, lt=0.5, description="difference in the attack's AUC that counts as none")
    residue: bool = Field(True, description="look for what is left below the answers (a few training steps per model)")
    goal: Literal["untrain", "unlearn", "repair"] | None = Field(
        None,
        description="undo these samples' influence, remove their classes, or undo wrong labels; default: untrain, and "
        "repair with --corrected",
    )
    corrected: Path | None = Field(
        None, description="right labels of the samples to forget, a list as `expunge repair --suspects` takes"
    )
    extended: bool = Field(
        False, description="also report what takes longer: quantile regression, SDE, IDI, relearning on retained data"
    )
    fail_on: str | None = Field(
        None, description="verdicts that end with exit code 3, separated by commas, e.g. not-forgotten,damaged"
    )
    pool: Path | None = Field(
        None, description="a workspace of deletion requests: audit all that it fulfilled together; instead of a model"
    )
    seed: int = Field(0, ge=0, description="of the audit, and the first of the references")
    split_seed: int = Field(0, ge=0, description="of `forget`")
    device: str = Field("auto", description=_DEVICE)


@options
class Pooled:
    """Settings of `expunge audit --pool`."""

    pool: Path = Field(..., description="a workspace of deletion requests")
    out: Path = Field(..., description="folder for verdict.json and the tables")
    retrain: int | None = Field(None, ge=2, description="references to train; default: as the workspace says")
    residue: bool = Field(True, description="run the feature-level audit")
    extended: bool = Field(False, description="also report what takes longer")
    fail_on: str | None = Field(None, description="verdicts that end with exit code 3")
    seed: int = Field(0, ge=0, description="of the audit, and the first of the references")


@options
class Memorise:
    """Settings of `expunge memorise`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    data: str = Field(..., description=_DATA)
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    out: Path = Field(..., description=".csv or .parquet for the scores; their facts are written to OUT.json")
    by: Literal["subsampling", "confidence", "events", "worst-case"] = Field(
        "subsampling",
        description="memorisation from many models, a proxy from one training, or the search for the worst set",
    )
    models: int = Field(40, ge=2, description="trainings, for `subsampling`")
    share: float = Field(0.7, gt=0, lt=1, description="of the data that each of them sees")
    amount: float = Field(0.1, gt=0, description="size of the set to search for, for `worst-case`")
    checkpoint: Path | None = Field(None, description="weights every training starts from; default: fresh ones")
    forget: str | None = Field(None, description="scenario whose labels are learned, such as noisy:0.1")
    options: dict[str, Any] = Field(default_factory=dict, description="recipe options, see `expunge show recipe`")
    seed: int = Field(0, ge=0, description="of subsets, initial weights and order")
    split_seed: int = Field(0, ge=0, description="of `forget`")
    device: str = Field("auto", description=_DEVICE)
    overwrite: bool = Field(False, description="replace a file that is there already")


@options
class Repair:
    """Settings of `expunge repair`."""

    model: str = Field(..., description=_MODEL)
    model_options: dict[str, Any] = Field(default_factory=dict, description=_MODEL_OPTIONS)
    checkpoint: Path = Field(..., description="weights of the trained model, safetensors or a plain state dict")
    data: str = Field(..., description=f"what the model was trained on, wrong labels included: {_DATA}")
    data_options: dict[str, Any] = Field(default_factory=dict, description=_DATA_OPTIONS)
    suspects: Path = Field(..., description="suspected labels: .csv, .parquet or .json, as cleanlab writes them too")
    below: float | None = Field(None, description="only suspects whose label quality is below it")
    top: int | None = Field(None, ge=1, description="only so many suspects, those of the lowest label quality")
    action: Literal["forget", "relabel"] = Field(
        "forget", description="forget the suspects, or teach their suggested labels after it"
    )
    method: str = Field("scrub", description="name or name/preset; with `relabel` also `none`: no unlearning before it")
    options: dict[str, Any] = Field(default_factory=dict, description="method options, see `expunge show method NAME`")
    learn_epochs: int | None = Field(None, ge=1, description="of `relabel`; default: 3")
    learn_rate: float | None = Field(None, gt=0, description="of `relabel`; default: a fifth of the training's")
    out: Path = Field(..., description="folder for weights, the corrected list, tables and the page")
    test: str | None = Field(None, description=_TEST)
    validation: str | None = Field(None, description="held-out data of their own (`rewind` needs them)")
    recipe: Path | None = Field(None, description="YAML of the training; default: result.json beside the checkpoint")
    initial: Path | None = Field(None, description="weights the training started from, for methods that need them")
    retrain: bool = Field(False, description="also train a model on the corrected data, and compare with it")
    neighbours: int = Field(10, ge=1, description="retained samples per suspect that are looked at")
    raw: bool = Field(False, description=_RAW)
    seed: int = Field(0, ge=0, description="of the repair and of the controls")
    device: str = Field("auto", description=_DEVICE)
    overwrite: bool = Field(False, description="replace a result made with other settings")
    force: bool = Field(False, description="do finished work again, and take no trained model from the cache")


NESTED = ("options", "model_options", "data_options")  # written name=value on the command line, a block in a file
