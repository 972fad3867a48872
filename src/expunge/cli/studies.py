"""`demo`, `run`, `status`, `report`, `export`, `tune`, `compare`, `reproduce`: studies.

Done by `expunge.bench` (run_study, status, export, tuning.tune, library.recipes) and `expunge.report`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from expunge.cli import console
from expunge.core.errors import ExpungeError, UsageError, unknown

if TYPE_CHECKING:
    from expunge.api.record import CellRecord
    from expunge.bench.engines import Engine

Folder = Annotated[Path, typer.Argument(help="A study folder, as `run` prints it.")]
Out = Annotated[Path | None, typer.Option("--out", help="Study folder; default: runs/NAME.", show_default=False)]
Changes = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change the study, e.g. data.source=path or seeds=[0,1]."),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Cells that run at the same time, one thread each.")]
EngineName = Annotated[str, typer.Option("--engine", help="Where cells run: local, ray or slurm.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray: address of a running cluster, e.g. auto; default: start one here.")
]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="Ray and SLURM: GPUs per cell.")]
Track = Annotated[
    str | None, typer.Option("--track", help="Also write each cell as a run of a tracker: mlflow (extra `tracking`).")
]
Partition = Annotated[str | None, typer.Option("--partition", help="SLURM: partition of the jobs.")]


def register(app: typer.Typer) -> None:
    """Add the study commands to an application."""
    for function, epilog in (
        (demo, "Example: expunge demo --out out/demo --jobs 2"),
        (run, "Example: expunge run recipes/smoke.yaml --jobs 2"),
        (status, "Example: expunge status runs/smoke"),
        (report, "Examples: expunge report runs/smoke; expunge report runs/* --site out/"),
        (export, "Examples: expunge export runs/smoke --csv table.csv --no-time; expunge export runs/smoke --mlflow"),
        (tune, "Example: expunge tune recipes/laf-mnist-random.yaml --jobs 2 --out tuned/laf-mnist-random"),
        (schema, "Examples: expunge schema --out study.schema.json; expunge schema workspace"),
        (compare, "Example: expunge compare runs/smoke --metric average_gap"),
        (
            reproduce,
            "Examples: expunge reproduce --list; expunge reproduce scrub-small-rb --jobs 2 -s data.source=data/cifar10",
        ),
    ):
        app.command(epilog=epilog)(function)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the study and its report go.")] = Path("out/demo"),
    jobs: Jobs = 2,
) -> None:
    """Forget handwritten digits in three ways with every method.

    Trains the originals and retrained references, prints a table per scenario and writes a report.
    """
    _study(_from_library("demo"), out, jobs)


def run(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).")],
    out: Out = None,
    jobs: Jobs = 1,
    change: Changes = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus: Gpus = 0.0,
    partition: Partition = None,
    track: Track = None,
    force: Annotated[bool, typer.Option("--force", help="Compute finished cells again.")] = False,
) -> None:
    """Run a study from its file. Finished cells are kept: Ctrl-C is safe, the same command goes on."""
    folder = out or Path("runs") / study.stem
    _study(study, folder, jobs, change or (), _engine(engine, folder, address, gpus, partition), track, force)


def status(folder: Folder) -> None:
    """How far a study is."""
    from expunge.bench.run import status as count

    console.out().print("  ".join(f"{state} {number}" for state, number in count(folder).items()))


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `unlearn` or `run`, or cells.json files.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; default: report.html.", show_default=False)
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="Write a folder of pages instead: leaderboard, methods, scenarios.")
    ] = None,
) -> None:
    """Write one self-contained HTML page, or a site of linked pages, about one or many runs."""
    from expunge.cli.reports import write_report, write_site

    if site is not None:
        console.say(f"site: {write_site(runs, site)}")
    if out is not None or site is None:
        page = out or Path("report.html")
        write_report(runs, page)
        console.say(f"report: {page}")


def schema(
    of: Annotated[str, typer.Argument(help="study (the file of `run`) or workspace (expunge.yaml).")] = "study",
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: print it.")] = None,
) -> None:
    """JSON Schema of a settings file: an editor then completes and checks keys, names and options.

    The first line `# yaml-language-server: $schema=study.schema.json` of a YAML file names it.
    """
    from expunge.bench.schema import json_schema, settings_schema
    from expunge.core.files import write_text
    from expunge.requests.settings import WorkspaceSettings

    makers: dict[str, Callable[[], str]] = {
        "study": json_schema,
        "workspace": lambda: settings_schema(WorkspaceSettings),
    }
    if of not in makers:
        raise unknown("settings file", of, makers)
    text = makers[of]() + "\n"
    if out is None:
        console.out().print(text, end="", soft_wrap=True, markup=False, highlight=False)
    else:
        write_text(out, text)
        console.say(f"schema: {out}")


def export(
    folder: Folder,
    csv: Annotated[Path | None, typer.Option("--csv", help="The tidy table: one row per cell and metric.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="The same table as Parquet.")] = None,
    latex: Annotated[
        Path | None, typer.Option("--latex", help="Methods by metrics over seeds, a booktabs table per scenario.")
    ] = None,
    typst: Annotated[Path | None, typer.Option("--typst", help="The same for Typst.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="The same as Markdown.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", help="Columns of these tables: a,b,c; default: accuracies and gaps."),
    ] = None,
    spread: Annotated[
        str, typer.Option("--spread", help="sd (sample standard deviation) or interval (95 %, of the mean).")
    ] = "sd",
    time: Annotated[bool, typer.Option("--time/--no-time", help="With seconds; without, byte-comparable.")] = True,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Write the cells that MLflow does not have yet.")] = False,
) -> None:
    """Write the tables of a study: tidy (CSV, Parquet), for a paper (LaTeX, Typst, Markdown), or runs of MLflow."""
    from expunge.bench.paper_tables import Spread
    from expunge.bench.run import export as write

    targets = {"csv": csv, "parquet": parquet, "latex": latex, "typst": typst, "markdown": markdown}
    files = [file for file in targets.values() if file is not None]
    if not files and not mlflow:
        raise UsageError(
            "nothing to write: give --csv, --parquet, --latex, --typst or --markdown with a file, or --mlflow."
        )
    if spread not in get_args(Spread):
        raise unknown("spread", spread, get_args(Spread))
    if files:
        columns = [name for text in metrics or () for name in text.split(",") if name]
        write(folder, **targets, metrics=columns, spread=cast(Spread, spread), time=time)
        console.say(f"written: {', '.join(map(str, files))}")
    if mlflow:
        from expunge.bench.tracking import export_mlflow
        from expunge.cli.reports import read_cells, read_study

        cells, study = read_cells(folder), read_study(folder)
        name = study.name if study is not None else folder.resolve().name
        console.say(f"MLflow, experiment {name}: {export_mlflow(name, cells)} of {len(cells)} cells written")


def tune(
    study: Annotated[Path, typer.Argument(help="A study file (YAML), or the name of one in the library.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the search; default: tuned/NAME.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Methods searched at the same time.")] = 1,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Show beside it what tuning against a retrained model would have gained.")
    ] = False,
    change: Changes = None,
) -> None:
    """Search options for every method with one budget, on validation data, without a retrained model.

    Writes tuned.yaml, a study with what was found. Ctrl-C is safe, the same command goes on.
    """
    from expunge.bench.tuning import tune as search
    from expunge.cli.faults import Interrupted
    from expunge.cli.tables import tuned_table

    file = study if study.is_file() or study.suffix in (".yaml", ".yml") else _from_library(str(study))
    folder = out or Path("tuned") / file.stem
    try:
        with console.progress() as progress:
            tuned = search(file, folder, jobs=jobs, oracle=oracle, progress=progress, overrides=change or ())
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; trials are kept in {folder}; run the same command again to go on.") from None
    console.out().print(tuned_table(tuned, oracle))
    console.out().print(f"study: {folder / 'tuned.yaml'}", soft_wrap=True)


def compare(
    folder: Folder,
    metric: Annotated[str, typer.Option("--metric", help="What is compared; it must have a better side.")] = (
        "average_gap"
    ),
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the paired differences here.")] = None,
) -> None:
    """Rank the methods of a study over its scenarios and seeds, and test their paired differences."""
    from expunge.api.result import write_text
    from expunge.cli.reports import read_cells
    from expunge.cli.tables import pairs_table, ranks_table
    from expunge.report import comparison

    cells = read_cells(folder)
    values = comparison.table(cells, metric)
    better = comparison.direction(cells, metric)
    ranks = comparison.ranks(values, better)
    if ranks is None:
        console.say(f"too few blocks to rank: {len(values)} (at least 4, and 3 methods); differences only.")
    else:
        console.out().print(ranks_table(ranks, metric, better))
    table = comparison.pairs(values)
    best = next(iter(ranks.mean)) if ranks else str(values.mean().sort_values(ascending=better == "lower").index[0])
    console.out().print(pairs_table(table, best, better))
    if csv is not None:
        write_text(csv, table.to_csv(index=False))
        console.say(f"written: {csv}")


def reproduce(
    name: Annotated[str, typer.Argument(help="A study of the library.")] = "",
    show: Annotated[bool, typer.Option("--list", help="List the library.")] = False,
    out: Out = None,
    jobs: Jobs = 1,
    change: Changes = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus: Gpus = 0.0,
    partition: Partition = None,
    track: Track = None,
) -> None:
    """Run a study that comes with Expunge, such as a paper's."""
    if show:
        from expunge.bench.library import titles

        for recipe, title in titles().items():
            console.out().print(f"{recipe:28}  {title}", soft_wrap=True)
    elif not name:
        raise UsageError("which one? `expunge reproduce --list` has the names.")
    else:
        folder = out or Path("runs") / name
        chosen = _engine(engine, folder, address, gpus, partition)
        _study(_from_library(name), folder, jobs, change or (), chosen, track)


def _engine(name: str, folder: Path, address: str | None, gpus: float, partition: str | None) -> Engine | None:
    """The engine of `--engine`; None: the local one, by `--jobs`."""
    if name not in ("local", "ray", "slurm"):
        raise unknown("engine", name, ("local", "ray", "slurm"))
    for option, setting, needs in (("address", address, ("ray",)), ("partition", partition, ("slurm",)),
                                 ("gpus", gpus, ("ray", "slurm"))):  # fmt: skip
        if setting and name not in needs:
            raise UsageError(f"`--{option}` belongs to --engine {' or '.join(needs)}, not to --engine {name}.")
    if name == "local":
        return None
    from expunge.bench.cluster import Ray, Slurm

    if name == "ray":
        return Ray(address, gpus=gpus)
    options: dict[str, Any] = {"slurm_partition": partition, "gpus_per_node": int(gpus) if gpus else None}
    return Slurm(folder=folder / "jobs", **{key: value for key, value in options.items() if value is not None})


def _watch(track: str | None, study: str) -> Callable[[CellRecord], None] | None:
    """What takes every finished cell for `--track`."""
    if track is None:
        return None
    from expunge.bench.tracking import Forgiving, opener

    return Forgiving(opener(track, study), console.say)


def _from_library(name: str) -> Path:
    from expunge.bench.library import recipes

    library = recipes()
    if name not in library:
        raise unknown("study", name, library)
    return Path(library[name])


def _study(
    recipe: Path,
    out: Path,
    jobs: int,
    changes: Sequence[str] = (),
    engine: Engine | None = None,
    track: str | None = None,
    force: bool = False,
) -> None:
    """Run or resume a study, print a table per scenario, write its report, and say where and how long."""
    from expunge.bench.run import load_study, run_study
    from expunge.cli.faults import Interrupted
    from expunge.cli.reports import check_published, read_cells, write_report
    from expunge.cli.tables import cells_tables, failure_reasons

    began = time.perf_counter()
    study = load_study(recipe, changes)
    check_published(study)
    watch = _watch(track, study.name)
    try:
        with console.progress() as progress:
            run_study(
                recipe, out=out, jobs=jobs, engine=engine, progress=progress, overrides=changes, watch=watch,
                again=force,
            )  # fmt: skip
        cells = read_cells(out)
        for grid in cells_tables(cells):
            console.out().print(grid)
        reasons = failure_reasons(cells)
        for reason in reasons:
            console.say(reason)
        if cells and all(cell.state == "failed" for cell in cells):
            raise ExpungeError(f"no cell of the study could be finished; {reasons[0] if reasons else 'see its report'}")
        write_report([out], out / "report.html")
    except KeyboardInterrupt:
        message = f"interrupted; finished work is kept in {out}; run the same command again to go on."
        raise Interrupted(message) from None
    console.out().print(f"report: {out / 'report.html'} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)
