"""Say what the running Python has of what a build needs; end with 1 if not all.

Arguments: any of `version`, `headers`, `venv`. Runs on every Python 3.
"""

import os
import sys
import sysconfig

OLDEST = (3, 11)


def has_version():
    """Return whether this Python is new enough for rtunnel."""
    return sys.version_info[:2] >= OLDEST


def has_headers():
    """Return whether C extensions can be compiled for this Python."""
    return os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))


def has_venv():
    """Return whether this Python can make a virtual environment with pip in it."""
    try:
        import ensurepip
        import venv
    except ImportError:
        return False
    return bool(ensurepip and venv)


CHECKS = {"version": has_version, "headers": has_headers, "venv": has_venv}

missing = [name for name in sys.argv[1:] if not CHECKS[name]()]
print(" ".join(missing))
sys.exit(1 if missing else 0)
