"""`expunge check method`: the conformance suite on a class, for whoever writes a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from expunge.cli import console
from expunge.cli.fields import typed_options
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import option_names
from expunge.core.user_code import load_user_code
from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.testing.conformance import CHECKS, ConformanceError, Settings, check_option, check_options_have_effect

Check = Callable[[type[Method], Settings], None]


def check_method(spec: str, options: Mapping[str, Any], settings: str | None, as_json: bool) -> bool:
    """Run every check on one method and print what each saw.

    Args:
        spec: A registered name, `path/to/file.py:Class` or `package.module:Class`.
        options: Values that make the method small and make it work on the toy problem.
        settings: Where a `Settings` object of the author's stands, as `file.py:NAME`; None: the defaults.
        as_json: One JSON object instead of a table.

    Returns:
        Whether all checks passed.

    Raises:
        UsageError: If the method or the settings are none, or an option is unknown.
    """
    name = METHODS.named(spec)
    cls = cast(type[Method], METHODS.load(name))
    chosen = Settings() if settings is None else load_user_code(settings, "settings")
    if not isinstance(chosen, Settings):
        raise UsageError(f"`{settings}` is a {type(chosen).__name__}; give an expunge.testing.conformance.Settings.")
    if options:
        chosen = _with(chosen, cls, options)
    rows = [(check.__name__.removeprefix("check_").replace("_", " "), _run(check, cls, chosen)) for check in CHECKS]
    passed = all(fault == "" for _, fault in rows)
    if as_json:
        checks = [{"check": check, "passed": not fault, "reason": fault} for check, fault in rows]
        console.print_json({"method": name, "passed": passed, "checks": checks})
        return passed
    grid = console.table("check", "result", "what was seen")
    grid.columns[0].no_wrap = True
    for check, fault in rows:
        grid.add_row(check, "failed" if fault else "passed", fault.removeprefix(f"{name}: "))
    console.out().print(grid)
    failures = sum(fault != "" for _, fault in rows)
    console.out().print(f"{name}: {failures} of {len(rows)} checks failed." if failures else f"{name}: all passed.")
    return passed


def _with(settings: Settings, cls: type[Method], options: Mapping[str, Any]) -> Settings:
    return replace(settings, options={**settings.options, **typed_options(cls, options, commands=())})


def _run(check: Check, cls: type[Method], settings: Settings) -> str:
    """What a check saw that is wrong; empty if it passed."""
    if check is check_options_have_effect:  # every idle option is named, not only the first
        names = [name for name in option_names(cls) if name not in settings.inert]
        faults = [_fault(partial(check_option, cls, settings, name)) for name in names]
        return " ".join(filter(None, faults))
    return _fault(lambda: check(cls, settings))


def _fault(run: Callable[[], None]) -> str:
    try:
        run()
    except (ConformanceError, ExpungeError) as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # the author's code may raise anything, and wants to see it
        return f"{type(error).__name__}: {error}"
    return ""
