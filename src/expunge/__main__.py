"""`python -m expunge`: where the script `expunge` is not on the path, and under torchrun."""

import sys

from expunge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
