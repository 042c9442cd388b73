"""``python -m layerhess`` is the same as ``layerhess``."""

import sys

from layerhess.cli import main

if __name__ == "__main__":
    sys.exit(main())
