"""Where X2Go clients keep their files."""

from __future__ import annotations

from typing import Final

USER_FOLDER: Final = "~/.x2goclient"
SYSTEM_FOLDER: Final = "/etc/x2goclient"
