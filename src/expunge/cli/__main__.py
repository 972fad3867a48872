"""`python -m expunge.cli`, for places where the script `expunge` is not on the path."""

import sys

from expunge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
