"""The version of the package, and the versions of its environment."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions needed to reproduce a number on the same kind of machine."""
    import torch  # on demand: `expunge --version` does without it

    return {
        "expunge": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
