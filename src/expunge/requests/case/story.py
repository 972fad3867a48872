"""A case in plain words, for a data-protection officer: what the page and the PDF say, written once.

Reads nothing but the document of a case, so that a case file tells the same story wherever it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.evidence import explain
from expunge.evidence.explain import verdict_label
from expunge.methods import METHODS
from expunge.report.audit_page import tone
from expunge.requests.case.numbers import class_table, main_numbers, overall
from expunge.requests.case.words import count, day, duration, minute, moment, short, visible

FORGOTTEN = "How well it forgot"  # title of the section that the page illustrates
PICTURE = (
    "Each attack looks at one number per sample and tries to tell the samples to forget from unseen ones of the same "
    "classes. One half is guessing; lines are 95 % intervals."
)
_MOST_ROWS = 100  # of requests and of versions that a page lists; the case file holds all
_STATUS = {
    "finished": "it ran to its end",
    "budget": "it stopped when its time was used up",
    "reached": "it stopped where its goal was reached",
    "limit": "it stopped at its limit, before its goal was reached",
    "already": "its goal was reached before the first step",
    "stopped": "it was stopped early",
    "stopped: utility": "it was taken back to where it had not yet cost too much accuracy",
}
_ACCESS = {
    "forget": "Samples to forget",
    "retain": "Training samples that stay",
    "validation": "Held-out samples",
    "trained weights": "The trained weights",
    "also": "Also",
}


@dataclass(frozen=True)
class Table:
    """columns: (name, whether numbers stand in it). A cell that has two lines is (first, second)."""

    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[str | tuple[str, str]]]


@dataclass(frozen=True)
class Section:
    """title, then paragraphs, facts (label, value), points and a table, each where there is something to say."""

    title: str
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Story:
    """tone: good, open or bad, the colour of the verdict `label`; made_at: when the case was made, UTC."""

    title: str
    label: str
    tone: str
    meaning: str
    basis: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    made_at: datetime


def tell(document: Mapping[str, Any], purges: Sequence[Mapping[str, Any]] = ()) -> Story:
    """The story of a signed document, as `case.read_case` returns it. What cannot be read as one is a `UsageError`.

    purges: records of what was removed since, oldest first.
    """
    try:
        return _story(document, purges)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"the case is not complete ({reason}); `expunge requests verify` says what was changed."
        ) from None


def _story(document: Mapping[str, Any], purges: Sequence[Mapping[str, Any]]) -> Story:
    content = document["content"]
    audit, unlearning = content["audit"], content["unlearning"]
    before, after = content["versions"]["before"], content["versions"]["after"]
    label = verdict_label(audit, "not audited")
    facts = [
        ("Requests", f"{len(content['requests']):,}"),
        ("Training samples to forget", f"{len(content['samples']):,}"),
        ("Method", f"{unlearning.get('method', after['method'])} ({_kind(content)})"),
        ("Model before", short(before["id"])),
        ("Model after", short(after["id"])),
        ("Case made", minute(content["made_at"])),
    ]
    sections = [
        _asked(content), _done(content), _access(unlearning), _forgotten(content), _cost(content), _left(content),
        _copies(content, purges), *(_purged(one) for one in purges),
        Section("Evidence and proof", [content["statement"]]), _check(document),
    ]  # fmt: skip
    return Story(
        title=f"Deletion case {content['fulfilment']['id']}",
        label=label,
        tone=tone(label) if audit else "open",
        meaning=explain.meaning(label) or "Nothing was measured after the samples were deleted from the model.",
        basis=f"{explain.BASIS_MEANINGS[audit['basis']]} {_CLAIM[_kind(content).partition(',')[0]]}" if audit else "",
        facts=facts,
        sections=[section for section in sections if section is not None],
        made_at=moment(content["made_at"]),
    )


_CLAIM = {
    "approximate": "The method is approximate: this is evidence, not proof.",
    "exact": "The method is exact: the new model never saw the samples, by construction.",
    "exact for the head": "The method is exact for the head of the model, by construction; the backbone is unchanged.",
    "certified": "The method is certified: what any attack can find is bounded, over noise that nobody knows.",
}


def _kind(content: Mapping[str, Any]) -> str:
    certificate = content.get("certificate") or {}
    if certificate.get("kind") == "certified":
        return f"certified, epsilon {certificate['epsilon']:g}, delta {certificate['delta']:g}"
    return "exact for the head" if certificate.get("of") == "head" else "exact" if content["exact"] else "approximate"


def _asked(content: Mapping[str, Any]) -> Section:
    asked = content["requests"]
    days = list(dict.fromkeys(day(one) for one in sorted(one["received_at"] for one in asked)))
    span = f"received on {days[0]}" if len(days) == 1 else f"received from {days[0]} to {days[-1]}"
    what = f"{count(len(asked), 'request')} to delete what the model knows of"
    rows = [
        [
            str(one["id"]), day(one["received_at"]), visible(one["reason"]) or "–", visible(one["ticket"] or "") or "–",
            "–" if one["samples"] is None else f"{one['samples']:,}", short(one["subject"]),
        ]
        for one in asked[:_MOST_ROWS]
    ]  # fmt: skip
    more = len(asked) - len(rows)
    return Section(
        "What was asked",
        [
            f"{what} {count(len(content['samples']), 'training sample')}, {span}.",
            "People and samples are named by keyed hashes. Only the holder of the workspace's secret file “pepper” can "
            "tell which hash is whose." + (f" {more:,} more requests are in the case file." if more else ""),
        ],
        table=Table(
            [("Request", False), ("Received", False), ("Reason", False), ("Ticket", False), ("Samples", True),
             ("Subject", False)],
            rows,
        ),
    )  # fmt: skip


def _done(content: Mapping[str, Any]) -> Section:
    unlearning, plan = content["unlearning"], content["plan"]
    before, after = content["versions"]["before"], content["versions"]["after"]
    method = str(unlearning.get("method", after["method"]))
    status = _STATUS.get(str(unlearning.get("status", "")), "")
    seconds = unlearning.get("seconds")
    took = "" if seconds is None else f" It took {duration(seconds)}{'; ' + status if status else ''}."
    facts = [
        ("Method", f"{method}: {_summary(method)}"),
        ("Made", minute(after["made_at"])),
        ("Seed", str(after["seed"])),
    ]
    facts += [("Options", _options(unlearning["options"]))] if unlearning.get("options") else []
    facts += [
        ("Samples that it may know", f"{after['knows']:,}"),
        ("Hash of these samples", short(after["data"])),
    ]
    notes = [visible(text) for text in unlearning.get("notes", ())]
    return Section(
        "What was done",
        [
            f"Model {short(before['id'])} was made to forget the samples by the method {method}. The result is model "
            f"{short(after['id'])}, which takes its place.{took}"
        ],
        facts,
        [*(f"Why this method: {visible(text)}" for text in plan.get("why", ())), *(f"Note: {text}" for text in notes)],
    )


def _access(unlearning: Mapping[str, Any]) -> Section | None:
    given = unlearning.get("needs")
    if not given:
        return None
    needs = Needs(**{name: given[name] for name in Needs.__dataclass_fields__ if name in given})
    nothing = {"trained weights": "no: it starts from fresh weights", "also": "nothing"}
    facts = [
        (_ACCESS[name], nothing.get(name, "nothing") if text == "-" else text)
        for name, text in needs.describe().items()
    ]
    return Section(
        "What the method could see",
        ["The software hands a method only what it declares; everything else is out of its reach."],
        facts,
    )


def _forgotten(content: Mapping[str, Any]) -> Section:
    audit = content["audit"]
    if not audit:
        return Section(FORGOTTEN, ["No audit was made. Whether the samples are forgotten is not known."])
    columns, rows = main_numbers(audit)
    return Section(
        FORGOTTEN,
        [
            f"Verdict: {verdict_label(audit)}. {explain.meaning(verdict_label(audit))}",
            "An AUC says how well an attacker tells the samples to forget from unseen ones: 0.5 is guessing, 1 is "
            "always right. The interval says how far chance reaches with so many samples.",
        ],
        points=[visible(reason) for reason in audit["reasons"]],
        table=Table(columns, rows) if rows else None,
    )


def _cost(content: Mapping[str, Any]) -> Section:
    columns, rows, left_out = class_table(content["side_effects"])
    paragraphs = overall(content["side_effects"])
    if rows:
        paragraphs.append("Changes are in percentage points, with their 95 % interval.")
    if left_out:
        paragraphs.append(f"The {len(rows)} classes that lost most are shown; {left_out} more are in the case file.")
    return Section("What it cost, class by class", paragraphs, table=Table(columns, rows) if rows else None)


def _left(content: Mapping[str, Any]) -> Section:
    rows = [
        [short(one["id"]), minute(one["made_at"]), f"{one['knows']:,}", _fate(one)]
        for one in content["remains"][:_MOST_ROWS]
    ]
    still = [one for one in content["remains"] if one["deleted_at"] is None]
    if still:
        verb = "knows" if len(still) == 1 else "know"
        text = f"{count(len(still), 'older version')} of the model still {verb} the samples, to go back to if need be."
    elif rows:
        text = "No stored version of the model that knows the samples is left."
    else:
        text = "The workspace names no older version of the model that knows the samples."
    return Section(
        "What remains",
        [
            text,
            "This case is about the model versions of this workspace. The samples in the data set itself, copies of "
            "the model elsewhere, and backups are not in its reach.",
        ],
        table=Table([("Version", False), ("Made", False), ("Samples it knows", True), ("Its file", False)], rows)
        if rows
        else None,
    )  # fmt: skip


def _copies(content: Mapping[str, Any], purges: Sequence[Mapping[str, Any]]) -> Section | None:
    """What else held the samples when the case was made; nothing is said of cases of earlier releases."""
    rows = content.get("copies")
    if rows is None:
        return None
    if not rows:
        return Section(
            "Copies", ["Nothing else that the software keeps was made of the samples when the case was made."]
        )
    text = (
        f"When the case was made, {count(len(rows), 'thing')} that the software keeps held the samples or came of them."
    )
    then = "What became of them is said below." if purges else "The command “expunge requests purge” removes them."
    return Section("Copies", [f"{text} {then}"], table=_things(rows))


def _purged(document: Mapping[str, Any]) -> Section:
    """A record of what was removed after the case was made."""
    record = document["content"]
    removed, kept = record["removed"], record["kept"]
    size = sum(row["bytes"] for row in removed)
    return Section(
        f"Removed on {day(record['made_at'])}",
        [f"{count(len(removed), 'thing')} removed ({size / 1e6:,.1f} MB), {count(len(kept), 'thing')} kept."],
        [("Signed record", f"number {record['number']}"), ("Hash of the record", document["hash"])],
        table=_things([*({**row, "why": f"removed: {row['why']}"} for row in removed),
                       *({**row, "why": f"kept: {row['why']}"} for row in kept)]),
    )  # fmt: skip


def _things(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        [row["what"], row["place"], minute(row["made_at"]) if row["made_at"] else "–", visible(row["why"])]
        for row in rows[:_MOST_ROWS]
    ]
    return Table([("What", False), ("Where", False), ("Made", False), ("Why", False)], shown)


def _check(document: Mapping[str, Any]) -> Section:
    content = document["content"]
    return Section(
        "How to check this",
        [
            "These words are a rendering; what counts is the signed case file. The command “expunge requests verify” "
            "checks it without a network, and “expunge docs case-file” says how to do it with other tools. Compare the "
            "fingerprint of the key with one that reached you by another way.",
        ],
        [
            ("Hash of the case", document["hash"]),
            ("Fingerprint of the key", document["fingerprint"]),
            ("Hash of the case before it", content["previous"] or "none: this is the first"),
            ("Last event of the ledger", content["ledger"]),
            ("Written by", f"Expunge {content['software']['expunge']}"),
        ],
    )  # fmt: skip


def _fate(version: Mapping[str, Any]) -> str:
    if version["deleted_at"] is not None:
        return f"deleted on {minute(version['deleted_at'])}"
    return "no date of deletion is set" if version["until"] is None else f"to be deleted by {minute(version['until'])}"


def _summary(method: str) -> str:
    try:
        return METHODS.card(method).summary.replace("`", "")
    except UsageError:  # of a plug-in that is not installed here
        return "a method that is not installed here"


def _options(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in given.items() if value is not None)
