"""Under torchrun every process runs the same command: one of them speaks, and the first failure ends all."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from expunge.cli.console import settings
from expunge.cli.faults import FAILED, INTERRUPTED
from expunge.core.distributed import data_parallel, under_torchrun
from expunge.core.errors import ExpungeError, UsageError

SHARED = ("train", "unlearn", "evaluate")
TELLING_SECONDS = 2.0  # torchrun ends all processes after the first exit; whoever explains must be done by then


def together(arguments: Sequence[str], action: Callable[[], int]) -> int:
    """Run `action`, shared with the other processes of torchrun if there are any."""
    if not under_torchrun():
        return action()
    with data_parallel() as world, contextlib.ExitStack() as muted:
        try:
            command = next((argument for argument in arguments if not argument.startswith("-")), "")
            if command not in SHARED:
                raise UsageError(
                    f"`expunge {command}` cannot be shared by {world.size} processes; run it without torchrun "
                    f"(those that can: {', '.join(SHARED)})."
                )
            if not world.is_main:
                settings.quiet = True
                nowhere = muted.enter_context(open(os.devnull, "w", encoding="utf-8"))
                muted.enter_context(contextlib.redirect_stdout(nowhere))
            code = action()
            sys.stdout.flush()
            return code
        except BaseException as error:
            if world.is_first_failure():
                raise
            time.sleep(TELLING_SECONDS)
            raise SystemExit(_code(error)) from None


def _code(error: BaseException) -> int:
    if isinstance(error, ExpungeError):
        return error.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
