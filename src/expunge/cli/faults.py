"""Every way to fail, in one sentence on stderr and with a documented exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from typer.exceptions import Abort, TyperException

from expunge.cli.console import settings
from expunge.core.errors import ExpungeError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Interrupted(ExpungeError):
    """Ctrl-C during work whose finished part is kept."""

    exit_code = INTERRUPTED


def guarded(action: Callable[[], int]) -> int:
    """Run `action`; whatever it raises becomes a sentence and an exit code."""
    try:
        return action()
    except ExpungeError as error:
        return _fail(str(error), error.exit_code, error)
    except TyperException as error:
        near = getattr(error, "possibilities", None)
        if near:  # the wording of all our refusals
            text = f"no such option: {getattr(error, 'option_name', '')}; did you mean {' or '.join(sorted(near))}?"
            return _fail(f"{text} See `expunge --help`.", error.exit_code, error)
        return _fail(f"{_sentence(error.format_message())} See `expunge --help`.", error.exit_code, error)
    except (KeyboardInterrupt, Abort) as error:
        return _fail("interrupted; run the same command again to go on.", INTERRUPTED, error)
    except BrokenPipeError:
        # The reader has gone (`expunge list | head`); the interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(_describe(error), FAILED, error)
    except MemoryError as error:
        return _fail("out of memory; use a smaller batch size or less data.", FAILED, error)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect must not show a traceback unasked
        if type(error).__name__ == "OutOfMemoryError":
            return _fail("the device is out of memory; use a smaller batch size or `--device cpu`.", FAILED, error)
        first = (str(error).splitlines() or [""])[0]
        defect = f"unexpected {type(error).__name__}: {_sentence(first or 'no message')}"
        return _fail(f"{defect} Run the same command with `--debug` to see where.", FAILED, error)


def _describe(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full, cannot write{where}; free some space and run the same command again to go on."
    return f"cannot use{where or ' a file'} ({error.strerror or error}); check the path and its permissions."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _fail(message: str, code: int, error: BaseException) -> int:
    if settings.debug:
        traceback.print_exception(error)
    sys.stderr.write(f"{'' if code == INTERRUPTED else 'error: '}{message}\n")
    return code
