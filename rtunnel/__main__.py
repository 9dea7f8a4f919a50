"""`python -m rtunnel` is the `rtunnel` command."""

import sys

from rtunnel.cli import main

if __name__ == "__main__":
    sys.exit(main())
