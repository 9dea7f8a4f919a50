"""`python -m x2go_session` is the `x2go-session` command."""

import sys

from x2go_session.cli import main

if __name__ == "__main__":
    sys.exit(main())
