"""`expunge requests ...`: the desk of deletion requests on the command line. Done by `expunge.requests.desk`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from expunge.cli import console
from expunge.core.display import counted
from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.records import STATES

if TYPE_CHECKING:
    from expunge.requests.desk import Desk
    from expunge.requests.records import State
    from expunge.requests.register import Register

Place = Annotated[Path, typer.Option("--workspace", "-w", help="The folder of `expunge init`.")]
Number = Annotated[int, typer.Argument(min=1, help="Number of a request, as `add` and `status` print it.")]
Batch = Annotated[str | None, typer.Option("--batch", help="Only requests of this batch.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
HERE = Path(".")

app = typer.Typer(
    name="requests",
    help="Deletion requests: take them in, fulfil them, prove it, undo it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    epilog="""Examples:\n
  expunge requests add --subject 4711 --reason "GDPR Art. 17"\n
  expunge requests fulfil --method auto\n
  expunge requests verify 12; expunge requests export 12 --pdf case.pdf""",
)


@contextlib.contextmanager
def _register(workspace: Path) -> Iterator[Register]:
    """For what needs neither models nor data, and so answers at once."""
    from expunge.requests.extras import extra

    with extra("requests"):
        from expunge.requests.register import Register

    with Register.open(workspace) as register:
        yield register


@contextlib.contextmanager
def _desk(workspace: Path) -> Iterator[Desk]:
    from expunge.requests.extras import extra

    with extra("requests"):
        from expunge.requests.desk import Desk

    with Desk.open(workspace) as desk:
        yield desk


@app.command(epilog='Example: expunge requests add --subject 4711 --reason "GDPR Art. 17" --ticket T-1')
def add(
    subject: Annotated[str, typer.Option("--subject", help="Id of the person or record, as the data write it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept as written, so name nobody in it.")] = "",
    ticket: Annotated[
        str | None, typer.Option("--ticket", help="Your number of it: the same ticket is never taken twice.")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="A name to fulfil it by, such as weekly.")] = "",
    workspace: Place = HERE,
) -> None:
    """Take in one request. The subject's id is kept as a keyed hash only."""
    with _register(workspace) as register:
        request, new = register.add(subject, reason=reason, ticket=ticket, batch=batch)
        console.out().print(f"request {request.id}: {request.state}{'' if new else ' (was known already)'}")


@app.command("import", epilog="Example: expunge requests import tickets.csv")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV with the column subject, and reason, ticket, batch if there are.")],
    workspace: Place = HERE,
) -> None:
    """Take in a file of requests; a file with a fault in it is refused as a whole."""
    with _register(workspace) as register:
        taken = register.import_tickets(file)
        new = sum(1 for _, fresh in taken if fresh)
        console.out().print(f"{counted(new, 'new request')}, {len(taken) - new:,} known already")


@app.command(epilog="Examples: expunge requests fulfil --batch weekly; expunge requests fulfil --method retrain --plan")
def fulfil(
    batch: Batch = None,
    method: Annotated[str, typer.Option("--method", help="auto, or a name or name/preset.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="NAME=VALUE", help="Options of the method.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and why; change nothing.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for another process at work.")] = 0,
    workspace: Place = HERE,
) -> None:
    """Unlearn what is asked for, audit it, sign a case file.

    First what an interrupted call left is taken up. Ctrl-C is safe, the same command goes on.
    """
    from expunge.cli.faults import Interrupted
    from expunge.cli.fields import pair

    options = dict(pair(text) for text in option or ())
    with _desk(workspace) as desk:
        if plan:
            planned = desk.plan(batch=batch, method=method, options=options)
            text = str(planned) if planned is not None else "nothing to do: no request waits"
            console.out().print(text, soft_wrap=True)
            return
        try:
            with console.progress() as progress:
                done = desk.fulfil(
                    batch=batch, method=method, options=options, wait=wait, progress=progress, say=console.say
                )
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished steps are kept; run the same command again to go on.") from None
        for fulfilment in done:
            console.out().print(desk.sentence(fulfilment), soft_wrap=True)
        if not done:
            console.out().print("nothing to do: no request waits")
        failed = [fulfilment for fulfilment in done if fulfilment.state == "failed"]
        if failed:
            of = counted(len(done), "fulfilment")
            raise ExpungeError(f"{len(failed)} of {of} failed; see `expunge requests status`.")


@app.command(epilog="Example: expunge requests status")
def status(
    last: Annotated[int, typer.Option("--last", min=1, help="So many of the newest requests.")] = 20,
    json: Json = False,
    workspace: Place = HERE,
) -> None:
    """How many requests are in which state, the newest ones, and the model that is in force."""
    with _register(workspace) as register:
        summary = register.status(last)
    if json:
        console.print_json(summary)
        return
    _print_requests(summary["requests"])
    console.out().print("  ".join(f"{state} {count}" for state, count in summary["counts"].items()) or "no requests")
    active = summary["active"]
    console.out().print(f"model in force: {active['id'][:12]} ({active['method']}, {active['made_at'][:16]})")
    left = summary["advice"]["accuracy_left"]
    room = "" if left is None else f" ({left:.0%} of the accuracy that may be lost is left)"
    console.out().print(f"advice: {summary['advice']['word']}{room}", soft_wrap=True)
    for reason in summary["advice"]["reasons"]:
        console.out().print(f"- {reason}", soft_wrap=True)


@app.command(
    "list", epilog="Examples: expunge requests list --state received; expunge requests list --batch weekly --json"
)
def list_(
    state: Annotated[
        list[str] | None, typer.Option("--state", help=f"Only in this state; may be repeated: {', '.join(STATES)}.")
    ] = None,
    batch: Batch = None,
    json: Json = False,
    workspace: Place = HERE,
) -> None:
    """All requests, oldest first."""
    with _register(workspace) as register:
        rows = register.listed(*cast("list[State]", state or []), batch=batch)
    if json:
        console.print_json(rows)
    elif rows:
        _print_requests(rows)
    else:
        console.out().print("no requests")


def _print_requests(rows: Sequence[Mapping[str, Any]]) -> None:
    grid = console.table("request", "state", "received", "batch", "samples", "message", right=("request", "samples"))
    for row in rows:
        samples = "" if row["samples"] is None else f"{row['samples']:,}"
        grid.add_row(str(row["id"]), row["state"], row["received_at"][:16], row["batch"], samples, row["message"])
    console.out().print(grid)


@app.command(epilog="Example: expunge requests show 12")
def show(
    number: Number,
    samples: Annotated[
        bool, typer.Option("--samples", help="Only the ids of its samples in the data, one per line, to delete there.")
    ] = False,
    json: Json = False,
    workspace: Place = HERE,
) -> None:
    """Everything about one request: states, times, what was done, the verdict."""
    if samples:
        with _desk(workspace) as desk:
            console.out().print("\n".join(desk.samples_of(number)), soft_wrap=True)
        return
    with _register(workspace) as register:
        details = register.show(number)
    if json:
        console.print_json(details)
        return
    for name, value in details["summary"].items():
        console.out().print(f"{name}: {value}", soft_wrap=True)
    for event in details["events"]:
        console.out().print(f"  {event['at'][:19]}  {event['kind']}  {event['by']}", soft_wrap=True)


@app.command(epilog="Examples: expunge requests verify 12; expunge requests verify 000012.json --key public.pem")
def verify(
    case: Annotated[str, typer.Argument(help="Number of a request, or the path of a case file.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key to hold a file against.", show_default=False)
    ] = None,
    workspace: Place = HERE,
) -> None:
    """Check a case file again: signature, chain, weights, ledger. A file alone can be checked anywhere, offline."""
    if case.isdigit():
        with _desk(workspace) as desk:
            findings = desk.verify(int(case))
    else:
        from expunge.requests.extras import extra

        with extra("requests"):
            from expunge.requests.case.document import verify_case
            from expunge.requests.case.keys import load_public

        if key is None:
            raise UsageError("a case file alone is checked against a public key; give --key keys/public.pem.")
        findings = verify_case(Path(case), public_key=load_public(key))
    for finding in findings:
        console.out().print(f"{'ok  ' if finding.ok else 'NOT '} {finding.sentence}", soft_wrap=True)
    bad = sum(1 for finding in findings if not finding.ok)
    if bad:
        raise ExpungeError(f"not in order: {bad} of {counted(len(findings), 'check')}; do not rely on this case file.")


@app.command(epilog="Example: expunge requests export 12 --pdf case.pdf --json case.json")
def export(
    number: Number,
    pdf: Annotated[Path | None, typer.Option("--pdf", help="The case file as PDF.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option("--html", help="As one page.", show_default=False)] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The signed document itself.", show_default=False)] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The weights that came of it (.safetensors).", show_default=False)
    ] = None,
    workspace: Place = HERE,
) -> None:
    """Write the case file of a request, or the model, where others can read them."""
    outputs = {"pdf": pdf, "html": html, "json": json, "model": model}
    chosen = {name: path for name, path in outputs.items() if path is not None}
    if not chosen:
        raise UsageError("nothing to write: give --pdf, --html, --json or --model with a file.")
    with _desk(workspace) as desk:
        desk.export(number, **chosen)
    console.say(f"written: {', '.join(map(str, chosen.values()))}")


@app.command(epilog="Example: expunge requests rollback 12")
def rollback(number: Number, workspace: Place = HERE) -> None:
    """Put the model back in force that a fulfilment started from; its requests count as rolled back."""
    with _register(workspace) as register:
        version = register.rollback(number)
    console.out().print(f"model in force: {version.id[:12]} ({version.method})")


@app.command(epilog="Example: expunge requests retry 12")
def retry(number: Number, workspace: Place = HERE) -> None:
    """Take a failed or rolled-back request in again."""
    with _register(workspace) as register:
        request = register.retry(number)
    console.out().print(f"request {request.id}: {request.state}")


@app.command(epilog="Example: expunge requests versions")
def versions(json: Json = False, workspace: Place = HERE) -> None:
    """The lineage of the model: every version, how it was made, and whether its file is still there."""
    with _register(workspace) as register:
        rows = register.versions()
    if json:
        console.print_json(rows)
        return
    grid = console.table("version", "parent", "method", "knows", "made", "state", right=("knows",))
    for row in rows:
        parent = row["parent"][:12] if row["parent"] else "-"
        grid.add_row(row["id"][:12], parent, row["method"], f"{row['knows']:,}", row["made_at"][:16], row["state"])
    console.out().print(grid)


@app.command(epilog="Examples: expunge requests purge; expunge requests purge --request 12 --yes")
def purge(
    request: Annotated[
        int | None, typer.Option("--request", min=1, help="Only what still knows the samples of this request.")
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option("--before", formats=["%Y-%m-%d"], help="Only what is older than this day (UTC), YYYY-MM-DD."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="The same: 12h, 30d, 4w.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the days of `retention`.")] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Keep this kind: versions, data, models, rows, attacks, hashes; may be repeated."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why it is kept, such as a law; the record states it.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    workspace: Place = HERE,
) -> None:
    """Remove what still knows forgotten samples: older model versions, and copies in the cache.

    It is listed first, and asked about; outside a terminal nothing is removed without --yes. Versions wait for the days
    of `retention`, unless --request, a date or --now is given. A signed record says what was removed and what was kept.
    """
    from expunge.cli.cache import size
    from expunge.core.entries import days
    from expunge.requests.purge import Wanted

    if before is not None and older_than is not None:
        raise UsageError("give --before or --older-than, not both.")
    end = before.replace(tzinfo=UTC) if before is not None else None
    if older_than is not None:
        end = datetime.now(UTC) - timedelta(days=days(older_than))
    wanted = Wanted(request=request, before=end, now=now, keep=tuple(keep or ()), reason=reason)
    with _register(workspace) as register:
        plan = register.plan_purge(wanted)
        rows = plan.rows(register.workspace.models)
        for row in rows:
            console.say(f"remove  {row['place']}  {size(row['bytes'])}  {row['what']}: {row['why']}")
        for thing in plan.kept:
            console.say(f"keep    {thing['place']}  {thing['what']}: {thing['why']}")
        if rows:
            what = f"{counted(len(rows), 'thing')} ({size(sum(row['bytes'] for row in rows))})"
            if not yes and not (console.interactive() and console.asked(f"Remove {what}?")):
                console.out().print(f"nothing removed: {what} would be; --yes removes them")
                return
        done = register.purge(wanted, say=console.say)
    for problem in done.left:
        console.say(problem)
    if done.record is None:
        console.out().print("nothing to remove")
        return
    freed = size(sum(row["bytes"] for row in done.removed))
    console.out().print(
        f"{counted(len(done.removed), 'thing')} removed ({freed}); signed record: {done.record}", soft_wrap=True
    )
    if done.left:
        raise ExpungeError(f"{len(done.left)} could not be removed; run the same command again later.")


@app.command(epilog="Example: expunge requests check")
def check(workspace: Place = HERE) -> None:
    """Check everything: the ledger's chain, each case file, each model file."""
    with _desk(workspace) as desk:
        breaks = desk.check()
    for problem in breaks:
        console.out().print(f"NOT  {problem}", soft_wrap=True)
    if breaks:
        raise ExpungeError(f"not in order: {counted(len(breaks), 'thing')}; restore the workspace from a backup.")
    console.out().print("ok   the ledger, its case files and model versions are as they were written")


@app.command(epilog="Example: expunge requests serve --workspace desk --port 8777")
def serve(
    workspace: Place = HERE,
    host: Annotated[
        str, typer.Option("--host", help="Address to serve on; only this machine by default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8777,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the token; default: a new one in keys/.", show_default=False),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A further host name that callers use.", show_default=False)
    ] = None,
) -> None:
    """Serve the API and its page on this machine, with a token. Needs the extra `service`."""
    from expunge.requests.extras import extra

    with extra("requests"), extra("service"):
        from expunge.requests.service.server import serve as run

    with contextlib.suppress(KeyboardInterrupt):
        run(workspace, host=host, port=port, token_file=token_file, names=name or (), say=console.say)
