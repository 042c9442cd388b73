"""Makes ``python -m layerhess`` the same as the command ``layerhess``."""

import sys

from layerhess.cli import main

if __name__ == "__main__":
    sys.exit(main())
