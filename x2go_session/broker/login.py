"""Log in to the server of a selected session: the profile for it, and its key.

selected = broker.select(profile.id)
with key_file(selected) as key:
    found = connection(profile_for(profile, selected, key), password=ask)
    tunnel = rtunnel.connect(found.destination, **found.options)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from x2go_session.broker.answers import SelectedSession
from x2go_session.profiles.profile import Profile


@contextlib.contextmanager
def key_file(selected: SelectedSession) -> Iterator[Path | None]:
    """The broker's key in a file that only this user can read, for the time of a block.

    None if there is no key. The file is in XDG_RUNTIME_DIR, which is in memory, where
    there is one.
    """
    if selected.private_key is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("XDG_RUNTIME_DIR")) as folder:
        path = Path(folder) / "key"
        path.touch(0o600)
        path.write_text(selected.private_key)
        yield path


def profile_for(
    profile: Profile, selected: SelectedSession, key: Path | None = None
) -> Profile:
    """Return a profile with the one server that the broker chose.

    With a key of the broker, it is the only one that is tried.
    """
    chosen = dataclasses.replace(
        profile, host=(selected.server,), sshport=selected.port or profile.sshport
    )
    if key is None:
        return chosen
    return dataclasses.replace(chosen, key=str(key), autologin=False)
