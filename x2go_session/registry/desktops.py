"""Which desktops of a server may be shown: those of sessions of some types may not."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from x2go_session.replies import Desktop, SessionInfo


def without_own_of_types(
    desktops: Iterable[Desktop],
    sessions: Iterable[SessionInfo],
    types: Collection[str],
) -> list[Desktop]:
    """Return desktops without those of the user's own sessions of types "D", "R" ...

    What others may show is their own decision. Pure.
    """
    left_out = {
        (info.user, str(info.display)) for info in sessions if info.type.value in types
    }
    return [
        each
        for each in desktops
        if (each.user, each.display.partition(".")[0]) not in left_out
    ]
