"""What was understood of a model, its checkpoint and its data, before anything is trained.

`inspect` also answers where the model cannot be used yet (weights that do not fit, samples that are refused): what
stands in the way is listed as a problem instead of being raised.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.fit import accuracy_on, measure_fit, settle_normalisation
from expunge.api.prepare import as_classifier, as_splits, check_fit, pick_device
from expunge.api.saved import as_trained, facts_beside, load, read_data
from expunge.api.trained import RECORD, WEIGHTS, TrainedModel
from expunge.core import display
from expunge.core.errors import CheckpointError, ExpungeError, UsageError
from expunge.core.seeds import global_generators, torch_generator
from expunge.data.inspection import Inspection
from expunge.data.inspection import inspect as inspect_data
from expunge.data.split import Split
from expunge.models import MODELS
from expunge.models.anatomy import NORMS, anatomy
from expunge.models.build import build_model
from expunge.models.checkpoint import load_matched, read_weights
from expunge.models.contract import Adapted, adapted, copied, described_output, first_tensor, plain_module
from expunge.models.matching import closest, match, own_tensors, shape_of
from expunge.models.modes import evaluation_mode, lone_samples
from expunge.models.weight_files import SUFFIXES, StateDict

SIDES = (32, 28, 64, 224, 8)
"""Image sizes that are tried, in this order, where no data tell."""


@dataclass(frozen=True)
class Part:
    """A module of the model. kind: its class. parameters: numbers in it."""

    name: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class CheckpointFacts:
    """What a file of weights holds, and how its names became those of the model.

    Attributes:
        path: The file or folder.
        tensors: How many it holds.
        values: Numbers in them.
        container: The key that holds the weights in the file; empty where the file is the state dict itself.
        stripped: Prefix taken off every name.
        added: Prefix put before every name.
        left_out: Names that belong to no part of the model, such as the loss of a Lightning module.
        missing: Names of the model that the file lacks.
        unexpected: Names of the file that the model lacks.
        other_shapes: Sentences about tensors of another shape.
        fits: Whether the model takes the weights; None without a model.
    """

    path: str
    tensors: int
    values: int
    container: str = ""
    stripped: str = ""
    added: str = ""
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shapes: tuple[str, ...] = ()
    fits: bool | None = None


@dataclass(frozen=True)
class MeasuredAccuracy:
    """On at most 2,000 samples of one part of the data, drawn by seed 0. value: in [0, 1]."""

    samples: int
    value: float


@dataclass(frozen=True)
class ModelInspection:
    """What `inspect` answers about a model.

    Attributes:
        source: What was named.
        architecture: Class of the network; empty where only a file of weights was given.
        trainable: Numbers in parameters that training changes.
        frozen: Numbers in parameters that it does not.
        buffers: Numbers in buffers, such as the statistics of BatchNorm.
        dtypes: Types of the parameters.
        blocks: Modules with weights in the order they run, without the head.
        head: The module that turns the representation into logits; None where it is not known.
        representation: Shape of what enters the head, for one sample.
        norms: Class of a normalisation layer -> how many.
        input_shape: Of one sample that the model takes; None where that is not known.
        input_dtype: Its type.
        classes: Columns of the logits.
        eval_output, train_output: What the network returns for a batch of B samples.
        deterministic: Whether two passes in evaluation mode are equal.
        draws: Whether two passes in train mode differ (dropout, stochastic depth).
        accuracy: Part of the data -> accuracy.
        checkpoint: Of the weights; None where the module was given with its weights.
        notes: What was chosen or guessed, and why.
        problems: What stands in the way of use.
    """

    source: str
    architecture: str = ""
    trainable: int = 0
    frozen: int = 0
    buffers: int = 0
    dtypes: tuple[str, ...] = ()
    blocks: tuple[Part, ...] = ()
    head: Part | None = None
    representation: tuple[int, ...] | None = None
    norms: Mapping[str, int] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    input_dtype: str = ""
    classes: int | None = None
    eval_output: str = ""
    train_output: str = ""
    deterministic: bool | None = None
    draws: bool | None = None
    accuracy: Mapping[str, MeasuredAccuracy] = field(default_factory=dict)
    checkpoint: CheckpointFacts | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what is known, for a table of two columns."""
        rows = [("architecture", self.architecture)]
        if self.architecture:
            counts = [f"{self.trainable:,} trainable", f"{self.frozen:,} frozen", f"{self.buffers:,} in buffers"]
            rows.append(("parameters", ", ".join([*counts, *self.dtypes])))
        if self.head is not None:
            width = "x".join(map(str, self.representation or ()))
            rows.append(("head", f"{self.head.name} ({self.head.kind}) on representations of {width}"))
        if self.architecture:
            norms = [f"{count} x {name}" for name, count in self.norms.items()]
            rows.append(("normalisation layers", ", ".join(norms) or "none"))
        if self.input_shape is not None:
            rows.append(("input", f"{'x'.join(map(str, self.input_shape))} {self.input_dtype}"))
        if self.eval_output:
            rows.append(("returns in eval mode", self.eval_output))
            rows.append(("returns in train mode", self.train_output))
            same = "equal" if self.deterministic else "different"
            draws = "different (dropout or the like)" if self.draws else "equal"
            rows.append(("two passes", f"{same} in eval mode, {draws} in train mode"))
        rows += [(f"accuracy, {name}", f"{a.value:.1%} of {a.samples:,} samples") for name, a in self.accuracy.items()]
        return [(name, value) for name, value in rows if value]

    def checkpoint_rows(self) -> list[tuple[str, str]]:
        """The same of the checkpoint."""
        found = self.checkpoint
        if found is None:
            return []
        fits = {True: "yes", False: "no", None: "not compared: no model was named"}[found.fits]
        rows = [
            ("file", found.path),
            ("holds", f"{display.counted(found.tensors, 'tensor')} with {found.values:,} numbers"),
            ("under the key", found.container),
            ("stripped from names", found.stripped),
            ("put before names", found.added),
            ("left out", _some(found.left_out)),
            ("missing", _some(found.missing)),
            ("unexpected", _some(found.unexpected)),
            ("of another shape", _some(found.other_shapes)),
            ("fits the model", fits),
        ]
        return [(name, value) for name, value in rows if value]

    def __repr__(self) -> str:
        rows = [*self.rows(), *(row for row in self.checkpoint_rows() if row[0] == "fits the model")]
        rows += [("problem", problem) for problem in self.problems]
        return display.as_text(f"{type(self).__name__}: {self.source}", rows[:9])

    def _repr_html_(self) -> str:
        rows = [*self.rows(), *self.checkpoint_rows(), *(("problem", problem) for problem in self.problems)]
        return display.as_html(f"{type(self).__name__}: {self.source}", rows)


def inspect(
    thing: Any,
    *,
    checkpoint: str | Path | None = None,
    data: Any = None,
    test: Any = None,
    model_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    cache: Path | None = None,
    **options: Any,
) -> Inspection | ModelInspection:
    """How data or a model are read, without training anything.

    Args:
        thing: Data: what `expunge.data.sources.load_pair` takes (a name, `hf:<id>`, a path), or what a verb takes (a
            split, a PyTorch or Hugging Face data set, (X, y)). Or a model: a module, a trained model or result, a
            folder that holds one, a file of weights, or what the command line takes as `--model` (a catalogue name,
            `package.module:function`, `path/to/file.py:function`).
        checkpoint: Weights of the model: a file, or a folder of `save_pretrained`.
        data: What the model was trained on; a name or path with its `options`, or what a verb takes.
        test: Data it was not trained on.
        model_options: Options of the model's factory.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for the forward passes.
        cache: Folder for decoded images, by default `$EXPUNGE_CACHE` or the user's cache folder.
        options: The fields of `expunge.data.sources.DataOptions`, for names and paths of data.

    Returns:
        An `Inspection` of data, or a `ModelInspection`.

    Raises:
        UsageError: For an unknown name or option.
        DataError: For data that cannot be read at all.
        CheckpointError: For a checkpoint alone that cannot be read.
    """
    if not (checkpoint is not None or data is not None or is_model(thing)):
        return inspect_data(thing, cache=cache, **options)
    target = pick_device(device)
    if isinstance(thing, (str, Path)):
        return _of_name(str(thing), checkpoint, data, test, dict(model_options or {}), target, options)
    trained = as_trained(thing)
    splits = _splits(trained) if data is None and test is None else as_splits({"train": data, "test": test})
    facts = None
    notes, problems = list[str](), list[str]()
    module = trained.model
    if checkpoint is not None:
        module = copied(module)
        facts = _load(module, Path(checkpoint), notes, problems)
    return _described(type(module).__name__, module, splits, facts, target, notes, problems)


def is_model(thing: Any) -> bool:
    """Whether `inspect` takes a thing as a model: by its type, or for a name by what it names."""
    if isinstance(thing, nn.Module | TrainedModel):
        return True
    if not isinstance(thing, (str, Path)):
        return False
    path = Path(thing)
    if path.is_dir():
        return any((path / name).is_file() for name in (WEIGHTS, "pytorch_model.bin"))
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return _is_spec(str(thing)) or path.suffix.lower() in SUFFIXES


def _is_spec(name: str) -> bool:
    return name in MODELS.names() or (":" in name and not name.startswith("hf:"))


def _of_name(
    name: str,
    checkpoint: str | Path | None,
    data: Any,
    test: Any,
    model_options: dict[str, Any],
    device: torch.device,
    options: dict[str, Any],
) -> ModelInspection:
    notes, problems = list[str](), list[str]()
    if not _is_spec(name):
        if checkpoint is not None:
            raise UsageError(
                f"`{name}` is no model to load {checkpoint} into; name one (`expunge list models`, "
                "path/to/file.py:function)."
            )
        return _of_weights(Path(name), data, test, device, notes, problems, options)
    path = None if checkpoint is None else Path(checkpoint)
    training = _training(path)
    splits: dict[str, Split] = {}
    if isinstance(data, (str, Path)):
        job = {"data": str(data), "data_options": options, "test": test}
        held_out = float(training.get("holdout", 0.0))
        splits = read_data(job, holdout=held_out, split_seed=int(training.get("split_seed", 0))).splits()
    elif data is not None:
        splits = as_splits({"train": data, "test": test})
    state = None if path is None else _read(path, problems)
    module, error = _built(name, splits, state, model_options, notes)
    if module is None:
        found = None if path is None or state is None else _counted(path, state)
        return ModelInspection(source=name, checkpoint=found, notes=tuple(notes), problems=(*problems, error))
    facts = None if path is None or state is None else _load(module, path, notes, problems)
    unknown = facts is not None and facts.fits and not training and "normalise" not in options
    return _described(name, module, splits, facts, device, notes, problems, settle=bool(unknown and splits))


def _training(path: Path | None) -> dict[str, Any]:
    """What is written down beside a checkpoint of how it was trained; empty where nothing is."""
    facts = {} if path is None or not path.exists() else facts_beside(path)
    training = facts.get("training") or {}
    return training if isinstance(training, dict) else {}


def _of_weights(
    path: Path,
    data: Any,
    test: Any,
    device: torch.device,
    notes: list[str],
    problems: list[str],
    options: Mapping[str, Any],
) -> ModelInspection:
    """A folder or file of weights, without the name of a model: a folder of ours tells how its model is made."""
    folder = path.parent if path.name == WEIGHTS else path
    if (folder / RECORD).is_file() and data is None and test is None and not options:
        try:
            trained = load(folder)
        except ExpungeError as error:
            problems.append(str(error))
        else:
            facts = _load(trained.model, folder / WEIGHTS, notes, problems)
            return _described(str(path), trained.model, _splits(trained), facts, device, notes, problems)
    state = read_weights(path)
    notes.append(
        "a file of weights does not say how its network computes; name the model as well: "
        f"`expunge inspect MODEL --checkpoint {path}`."
    )
    return ModelInspection(
        source=str(path), checkpoint=_counted(path, state), notes=tuple(notes), problems=tuple(problems)
    )


def _splits(trained: TrainedModel) -> dict[str, Split]:
    parts = {"train": trained.train, "held-out": trained.held_out, "test": trained.test}
    parts["forgotten"] = getattr(trained, "forget", None)
    return {name: split for name, split in parts.items() if split is not None and len(split)}


def _read(path: Path, problems: list[str]) -> StateDict | None:
    try:
        return read_weights(path)
    except CheckpointError as error:
        problems.append(str(error))
        return None


def _counted(path: Path, state: StateDict) -> CheckpointFacts:
    return CheckpointFacts(str(path), len(state), sum(t.numel() for t in state.values()), state.container)


def _load(module: nn.Module, path: Path, notes: list[str], problems: list[str]) -> CheckpointFacts | None:
    """Load a checkpoint, and say how; the module stays as it was where it does not fit."""
    state = _read(path, problems)
    if state is None:
        return None
    facts = _counted(path, state)
    own = own_tensors(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was left out is listed here
            found = load_matched(module, path)
    except CheckpointError as error:
        problems.append(str(error))
        near = closest(module, state)
        return replace(
            facts,
            fits=False,
            missing=tuple(name for name in own if name not in near),
            unexpected=tuple(sorted(name for name in near if name not in own)),
            other_shapes=tuple(_other_shapes(near, own)),
        )
    return replace(facts, fits=True, stripped=found.stripped, added=found.added, left_out=found.left_out)


def _other_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in own.items():
        if name in state and shape_of(tensor) not in (None, tuple(state[name].shape)):
            yield f"{name} is {tuple(state[name].shape)}, the model has {shape_of(tensor)}"


def _built(
    name: str,
    splits: Mapping[str, Split],
    state: StateDict | None,
    model_options: Mapping[str, Any],
    notes: list[str],
) -> tuple[nn.Module | None, str]:
    """The model, made for the data, else for what the weights or the usual sizes suggest; and why there is none."""
    if splits:
        some = next(iter(splits.values()))
        return _try(name, some.num_classes, some.input_shape, model_options)
    error, likely = "", None
    for shape in _shapes(state):
        module, why = _try(name, 10, shape, model_options)
        classes = 10 if module is None else _classes(module, state)
        if classes != 10:
            module, why = _try(name, classes, shape, model_options)
        error = error or why
        if module is None or not _takes(module, shape):
            continue
        likely = likely or (module, shape, classes)
        if state is None or _matches(module, state):
            likely = (module, shape, classes)
            break
    if likely is None:
        return None, error or f"`{name}` takes none of the usual input sizes; name its data with --data."
    module, shape, classes = likely
    sizes = "x".join(map(str, shape))
    notes.append(f"there are no data to tell, so the model is built for {classes} classes and inputs of {sizes}.")
    return module, ""


def _classes(module: nn.Module, state: StateDict | None) -> int:
    """Rows of the last tensor of the model in the weights; 10 where they do not tell."""
    last = next((name for name, tensor in reversed(own_tensors(module).items()) if shape_of(tensor)), "")
    near = {} if state is None else closest(module, state)
    return len(near[last]) if last in near and near[last].ndim else 10


def _matches(module: nn.Module, state: StateDict) -> bool:
    try:
        return match(module, state) is not None
    except CheckpointError:
        return False


def _try(name: str, classes: int, shape: Sequence[int], options: Mapping[str, Any]) -> tuple[nn.Module | None, str]:
    try:
        return build_model(name, num_classes=classes, input_shape=tuple(shape), options=options), ""
    except UsageError as error:
        return None, str(error)


def _shapes(state: StateDict | None) -> list[tuple[int, ...]]:
    """Shapes of a sample that a network with these weights may take; images of the usual sizes first."""
    first = next((t for t in (state or {}).values() if t.ndim in (2, 4)), None)
    if first is None:
        return [(3, side, side) for side in SIDES] + [(1, 28, 28), (16,)]
    width = first.shape[1]
    if first.ndim == 4:
        return [(width, side, side) for side in SIDES]
    sides = [(channels, math.isqrt(width // channels)) for channels in (1, 3)]
    return [(width,), *((channels, side, side) for channels, side in sides if channels * side * side == width)]


def _takes(module: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with evaluation_mode(module), torch.no_grad():
            module(_sample(shape))
    except Exception:  # noqa: BLE001  # a user's network may raise anything on a made-up sample
        return False
    return True


def _sample(shape: Sequence[int]) -> Tensor:
    return torch.rand(2, *shape, generator=torch_generator(0, "inspect"))


def _described(
    source: str,
    module: nn.Module,
    splits: Mapping[str, Split],
    checkpoint: CheckpointFacts | None,
    device: torch.device,
    notes: list[str],
    problems: list[str],
    *,
    settle: bool = False,
) -> ModelInspection:
    """All that a look at the network and some forward passes tell. settle: try how pixels are normalised."""
    network = module.net if isinstance(module, Adapted) else module
    known: dict[str, Any] = {
        "source": source,
        "architecture": type(network).__name__,
        "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "frozen": sum(p.numel() for p in network.parameters() if not p.requires_grad),
        "buffers": sum(b.numel() for b in network.buffers()),
        "dtypes": tuple(dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in network.parameters())),
        "norms": dict(Counter(type(m).__name__ for m in network.modules() if isinstance(m, NORMS))),
        "checkpoint": checkpoint,
    }
    x = _first_batch(splits, device) if splits else _made_up(module)
    if x is not None:
        known |= {"input_shape": tuple(x.shape[1:]), "input_dtype": str(x.dtype).removeprefix("torch.")}
        try:
            plain = plain_module(module)
            model, remarks = _reader(plain, splits, x, device)
            notes += remarks
            if settle:
                others = [split for part, split in splits.items() if part != "train"]
                notes += filter(None, settle_normalisation(model, splits["train"], others, device=device)[1:])
            home = next((p.device for p in plain.parameters()), device)
            model.to(device)
            try:
                known |= _passes(plain, model, x.to(device), problems)
            finally:
                model.to(home)
            check_fit(model, splits, device)
            known["accuracy"] = _accuracies(model, splits, device, notes)
        except ExpungeError as error:
            problems.append(str(error))
    return ModelInspection(**known, notes=tuple(dict.fromkeys(notes)), problems=tuple(dict.fromkeys(problems)))


def _first_batch(splits: Mapping[str, Split], device: torch.device) -> Tensor:
    return next(iter(next(iter(splits.values())).batches(2, device=device))).x


def _made_up(module: nn.Module) -> Tensor | None:
    """Samples of the first usual shape that the model takes; None if there is none."""
    state = StateDict(own_tensors(module))
    return next((_sample(shape) for shape in _shapes(state) if _takes(module, shape)), None)


def _reader(
    module: nn.Module, splits: Mapping[str, Split], x: Tensor, device: torch.device
) -> tuple[nn.Module, list[str]]:
    """The module as a function to logits."""
    if splits:
        return as_classifier(module, splits, device, trains=True)
    return adapted(module, x, trains=True)


def _passes(given: nn.Module, model: nn.Module, x: Tensor, problems: list[str]) -> dict[str, Any]:
    network = given.net if type(given) is Adapted else given  # other adapters know how their network is called
    known: dict[str, Any] = {}
    with evaluation_mode(network), torch.no_grad():
        first, second = network(x.clone()), network(x.clone())
        known |= {"eval_output": described_output(first), "deterministic": _equal(first, second)}
    learning = copied(network).train()
    with global_generators(x.device), lone_samples(learning), torch.no_grad():
        first, second = learning(x.clone()), learning(x.clone())
        known |= {"train_output": described_output(first), "draws": not _equal(first, second)}
    with evaluation_mode(model), torch.no_grad():
        known["classes"] = model(x.clone()).shape[1]
    try:
        parts = anatomy(model, x)
    except UsageError as error:
        problems.append(f"methods that work on the head or on blocks cannot: {error}")
        return known
    known |= {
        "head": _part(parts.model, parts.head),
        "representation": parts.shape,
        "blocks": tuple(_part(parts.model, name) for name in parts.blocks),
    }
    return known


def _equal(first: Any, second: Any) -> bool:
    a, b = first_tensor(first), first_tensor(second)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def _part(model: nn.Module, name: str) -> Part:
    module = model.get_submodule(name)
    shown = name.removeprefix("net.") if isinstance(model, Adapted) else name
    return Part(shown, type(module).__name__, sum(p.numel() for p in module.parameters()))


def _accuracies(
    model: nn.Module, splits: Mapping[str, Split], device: torch.device, notes: list[str]
) -> dict[str, MeasuredAccuracy]:
    labelled = {name: split for name, split in splits.items() if split.has_labels}
    found = {name: MeasuredAccuracy(*accuracy_on(model, split, device=device)) for name, split in labelled.items()}
    if "train" in labelled:
        fit = measure_fit(model, labelled["train"], labelled.get("test", labelled["train"]), device=device)
        if fit.near_chance:
            notes.append(f"the training accuracy is near chance; {fit.causes()}")
    return found


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
