"""`expunge`: the script entry. Commands are declared here and done elsewhere, imported when they run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from expunge.cli import cache, console, faults, launched, requests, studies
from expunge.cli.complete import KINDS, kinds
from expunge.cli.lazy import LazyGroup
from expunge.core.version import __version__

EPILOG = """Exit codes: 0 done, 1 failed, 2 the request cannot be right as written,
3 a verdict that --fail-on names, 130 interrupted (run it again to go on).

Examples:\n
  expunge demo\n
  expunge list methods\n
  expunge show method scrub\n
  expunge train --model cnn --data mnist --epochs 5 --out run/\n
  expunge unlearn --model cnn --checkpoint run/model.safetensors --data mnist --forget class:3 --out forgot/"""

app = typer.Typer(
    name="expunge",
    cls=LazyGroup,
    help="Make a trained PyTorch classifier forget chosen training data, and prove how well it forgot.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
)
GLOBAL = {"--quiet": "quiet", "-q": "quiet", "--debug": "debug"}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks; allowed anywhere.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks for errors; allowed anywhere.")] = False,
) -> None:
    """Options of every command; `main` has read `--quiet` and `--debug` already."""


Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Kind = Annotated[str, typer.Argument(help=" | ".join(KINDS), autocompletion=kinds)]


@app.command("list", epilog="Examples: expunge list methods --for class --without-retain; expunge list models --json")
def list_(
    kind: Kind,
    json: Json = False,
    request: Annotated[
        Literal["class", "samples", "labels"] | None,
        typer.Option("--for", help="Methods meant for this: a whole class, single samples, wrong labels."),
    ] = None,
    without_retain: Annotated[
        bool, typer.Option("--without-retain", help="Methods that read no retained sample.")
    ] = False,
    without_labels: Annotated[bool, typer.Option("--without-labels", help="Methods that read no label.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All methods with needs, purpose, cost and what was measured.")
    ] = False,
) -> None:
    """What there is: methods, metrics, scenarios, models, datasets."""
    from expunge.cli.listing import MethodFilter, list_kind, print_matrix

    query = MethodFilter(request or "", without_retain, without_labels)
    if markdown:
        print_matrix(kind, plain=query == MethodFilter() and not json)
    else:
        list_kind(kind, json, query)


def _complete_name(context: typer.Context, incomplete: str) -> list[str]:
    from expunge.cli.complete import catalogue

    return [name for name in catalogue(context.params["kind"]).names() if name.startswith(incomplete)]


@app.command(epilog="Examples: expunge show method scrub; expunge show scenario class; expunge show recipe")
def show(
    kind: Annotated[str, typer.Argument(help=f"{' | '.join(KINDS)} | recipe", autocompletion=kinds)],
    name: Annotated[str, typer.Argument(help="Its name.", autocompletion=_complete_name)] = "",
    json: Json = False,
) -> None:
    """Everything about one thing: equation, options, needs, citation.

    Options come with defaults and bounds, methods with their presets.
    """
    from expunge.cli import listing
    from expunge.core.errors import UsageError

    if kind == "recipe":
        listing.show_recipe(json)
    elif not name:
        raise UsageError(f"which one? write `expunge show {kind} NAME`; `expunge list {kind}` has the names.")
    else:
        listing.show(kind, name, json)


@app.command(
    epilog="Examples: expunge inspect faces/; expunge inspect people.csv --data-set id_column=user --json; "
    "expunge inspect net.py:build --checkpoint net.pth --data faces/; expunge inspect run/"
)
def inspect(
    thing: Annotated[
        str,
        typer.Argument(
            metavar="DATA|MODEL",
            help="Data: catalogue name, hf:owner/name, folder or file. Model: catalogue name, package.module:function, "
            "path/to/file.py:function, a folder of ours, or a file of weights.",
        ),
    ],
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Weights of the model.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="What the model was trained on.")] = None,
    test: Annotated[str | None, typer.Option("--test", help="Data it was not trained on.")] = None,
    model_set: Annotated[
        list[str] | None, typer.Option("--model-set", help="Options of the model as name=value, as for `train`.")
    ] = None,
    data_set: Annotated[
        list[str] | None, typer.Option("--data-set", help="Options of the data as name=value, as for `train`.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or cuda:N, for the forward passes.")
    ] = "auto",
    json: Json = False,
) -> None:
    """How data or a model are read, without training anything.

    Data: parts, classes in order, columns and types, shapes, duplicates, and what is ignored. Model: parameters, blocks
    and head, names in the checkpoint, what it takes and returns, and its accuracy on the data.
    """
    from expunge.api.inspection import is_model
    from expunge.cli.fields import pair
    from expunge.cli.inspect import inspect_data, inspect_model

    of_data = dict(pair(text, "--data-set") for text in data_set or ())
    of_model = dict(pair(text, "--model-set") for text in model_set or ())
    if is_model(thing) or checkpoint is not None or data is not None or of_model:
        inspect_model(thing, checkpoint, data, test, of_model, of_data, device, json)
    else:
        inspect_data(thing, of_data, json)


@app.command(epilog="Example: expunge check method my_methods.py:Mine -s epochs=2 --settings my_methods.py:SETTINGS")
def check(
    kind: Annotated[str, typer.Argument(help="method")],
    name: Annotated[str, typer.Argument(help="path/to/file.py:Class, package.module:Class, or a registered name.")],
    options: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Options on the toy problem, as name=value.")
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option("--settings", help="file.py:NAME of a Settings: contexts, values, inert options."),
    ] = None,
    json: Json = False,
) -> None:
    """Check a method of your own: what it reads, that it repeats and restores, and which option changes nothing."""
    from expunge.cli.check import check_method
    from expunge.cli.fields import pair
    from expunge.core.errors import UsageError

    if kind not in ("method", "methods"):
        raise UsageError(f"`{kind}` cannot be checked; write `expunge check method NAME`.")
    if not check_method(name, dict(pair(text, "--set") for text in options or ()), settings, json):
        raise typer.Exit(faults.FAILED)


@app.command()
def train() -> None:
    """Train a model: the original, or a reference without the forget set."""


@app.command()
def unlearn() -> None:
    """Make a trained model forget, measure it, and write a report."""


@app.command()
def evaluate() -> None:
    """Measure models side by side on forget, retain and test data."""


@app.command()
def audit() -> None:
    """Judge how well a model forgot: attacks, tests against retrained models, a verdict in one word."""


@app.command()
def memorise() -> None:
    """Score how much a model memorises each training sample, for scenarios to choose by."""


@app.command()
def repair() -> None:
    """Repair a model that learned wrong labels: forget or relabel suspects, see whom else it hurt."""


@app.command()
def init() -> None:
    """Make a workspace for deletion requests around a trained model."""


@app.command(epilog="Example: expunge doctor --json")
def doctor(json: Json = False) -> None:
    """What this machine offers: cores, instruction sets, measured bfloat16 speed-up, GPU, memory, cache, versions."""
    from expunge.cli.doctor import doctor as examine_machine

    examine_machine(json)


@app.command("docs", epilog="Examples: expunge docs; expunge docs case-file")
def docs_(page: Annotated[str, typer.Argument(help="Name of a page; without it they are listed.")] = "") -> None:
    """The pages of the documentation, such as the one that case files refer to."""
    from expunge.cli.docs import docs as print_page

    print_page(page)


studies.register(app)
app.add_typer(requests.app)
app.add_typer(cache.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `--quiet` and `--debug` may stand anywhere."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console.settings.quiet = console.settings.debug = False
    for token in argv:
        if token in GLOBAL:
            setattr(console.settings, GLOBAL[token], True)
    rest = [token for token in argv if token not in GLOBAL]

    def run() -> int:
        if _plain_list(rest):
            from expunge.cli.listing import list_kind

            list_kind(rest[1], "--json" in rest)
            return faults.OK
        code = app(rest, prog_name="expunge", standalone_mode=False)
        sys.stdout.flush()
        if code == faults.INTERRUPTED:
            raise KeyboardInterrupt
        return int(code or 0)

    with warnings.catch_warnings():
        if not console.settings.debug and not sys.warnoptions:
            warnings.simplefilter("ignore")
        return faults.guarded(lambda: launched.together(rest, run))


def _plain_list(arguments: list[str]) -> bool:
    """`list KIND [--json]` skips the parser, which would load pydantic's core and double the time."""
    return (
        len(arguments) > 1 and arguments[0] == "list" and arguments[1][:1] != "-" and arguments[2:] in ([], ["--json"])
    )


if __name__ == "__main__":
    sys.exit(main())
