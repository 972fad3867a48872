"""A case as one HTML page, in the look of the other reports: no script, nothing from a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from expunge.api.result import write_text
from expunge.core.version import __version__
from expunge.report.audit_page import attack_intervals
from expunge.report.environment import environment, stylesheet
from expunge.requests.case.document import Finding
from expunge.requests.case.story import FORGOTTEN, PICTURE, tell


def case_html(
    document: Mapping[str, Any], findings: Sequence[Finding] = (), purges: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page of a signed document. findings: of `verify_case`, shown at the end. purges: records of purges since.

    Raises `UsageError` if the document is not complete.
    """
    story = tell(document, purges)
    attacks = pd.DataFrame(document["content"]["audit"].get("attacks", ()))
    return environment("expunge.requests.case").get_template("case.html").render(
        **{name: getattr(story, name) for name in ("title", "label", "tone", "meaning", "basis", "facts", "sections")},
        pictured=FORGOTTEN,
        caption=PICTURE,
        picture=None if attacks.empty else Markup(attack_intervals(attacks)),
        findings=findings,
        version=__version__,
        style=stylesheet(),
    )  # fmt: skip


def build_case_page(
    document: Mapping[str, Any],
    out: str | Path,
    findings: Sequence[Finding] = (),
    purges: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page; it appears whole or not at all."""
    write_text(Path(out), case_html(document, findings, purges))
    return Path(out)
