"""The token of the service: drawn at each start, or read from a file of the operator; never printed."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from expunge.core.errors import ExpungeError, UsageError

TOKEN = "service-token"  # its name in the workspace's keys/
_SHORTEST, _LONGEST = 32, 512  # characters


def draw_token(folder: Path) -> tuple[str, Path]:
    """A new token of 256 bits, in a file that its owner alone may read; the one of the last start is replaced."""
    token, path = secrets.token_urlsafe(32), folder / TOKEN
    part = folder / f".{TOKEN}.{secrets.token_hex(8)}"
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(f"{token}\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExpungeError(f"cannot write the token to {path} ({error.strerror}); give one by --token-file.") from None
    return token, path


def read_token(path: Path) -> str:
    """The token in a file. Raises `UsageError` if others may read the file, or if it holds no good token."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as stream:
            content = stream.read(_LONGEST + 2).strip()
    except OSError as error:
        raise UsageError(
            f"the token file {path} cannot be read ({error.strerror}); make it, or leave it out."
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise UsageError(f"{path} is open to other users (mode {mode:04o}); draw a new token and `chmod 600 {path}`.")
    if not _SHORTEST <= len(content) <= _LONGEST or not all(0x21 <= byte <= 0x7E for byte in content):
        raise UsageError(
            f"{path} must hold one token of {_SHORTEST} to {_LONGEST} visible ASCII characters; "
            "`openssl rand -hex 32` makes one."
        )
    return content.decode("ascii")
