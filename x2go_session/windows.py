"""The window of a session on this side's display: found, named, and brought to front.

    window = find_window(session.name)
    if window is not None:
        window.set_title("Office")
        window.activate()

A desktop (and a desktop of somebody else that is shown) is one window, which the agent
calls "X2GO-" and the session's name. Windows of rootless sessions have the titles that
their programs give them, and cannot be told from others.

A window manager, if there is one, is asked by what freedesktop.org calls EWMH; without
one, the X server is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from Xlib import X, Xatom, error
from Xlib.display import Display
from Xlib.protocol import event
from Xlib.xobject.drawable import Window

from x2go_session.errors import GraphicsError
from x2go_session.graphics import check_display

PREFIX: Final = "X2GO-"
# The tree of windows is searched no further: a busy desktop has some thousands.
MOST_WINDOWS: Final = 20_000
# Xlib's unit for the length of a property is 4 bytes.
MOST_TITLE_BYTES: Final = 4096
# EWMH, _NET_ACTIVE_WINDOW: asked by the user, through a program that is no application.
_SOURCE_PAGER: Final = 2
_ANSWER: Final = X.SubstructureRedirectMask | X.SubstructureNotifyMask


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """The window of a session: its number on the display, and its title when found.

    Each call has a connection of its own to the display, and may be made on any thread.
    Raises `GraphicsError` when there is no display, or no such window any more.
    """

    session: str
    number: int
    title: str
    display: str | None = None

    def set_title(self, title: str) -> str:
        """Give the window a title; return the one that it has now.

        The session's name is put before a title that does not have it, so that the
        window is found again.
        """
        title = " ".join(title.split())
        if self.session not in title:
            title = f"{PREFIX}{self.session} {title}".rstrip()
        with self._opened() as (display, window):
            utf8 = display.intern_atom("UTF8_STRING")
            for name, old in (
                ("_NET_WM_NAME", Xatom.WM_NAME),
                ("_NET_WM_ICON_NAME", Xatom.WM_ICON_NAME),
            ):
                _put(window, display.intern_atom(name), utf8, title.encode())
                # Who knows no UTF-8 reads this one, in Latin-1.
                _put(window, old, Xatom.STRING, title.encode("latin-1", "replace"))
        return title

    def activate(self) -> None:
        """Bring the window in front of all others, and give it the keyboard."""
        with self._opened() as (display, window):
            root = display.screen().root
            if _has_manager(display, root):
                message = event.ClientMessage(
                    window=window,
                    client_type=display.intern_atom("_NET_ACTIVE_WINDOW"),
                    data=(32, [_SOURCE_PAGER, X.CurrentTime, 0, 0, 0]),
                )
                root.send_event(message, event_mask=_ANSWER)
            else:
                ignored = error.CatchError()
                top = _top_level(window, root)
                top.map(onerror=ignored)
                top.configure(stack_mode=X.Above, onerror=ignored)
                # Refused by the server for a window that is not seen yet.
                window.set_input_focus(X.RevertToParent, X.CurrentTime, ignored)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Display, Window]]:
        """Open the display for requests to the window; wait until they are done."""
        with _opened(self.display) as display:
            window = display.create_resource_object("window", self.number)
            try:
                yield display, window
                display.sync()
                is_there = _title(display, window) is not None
            except error.BadWindow:
                is_there = False
            if not is_there:
                raise GraphicsError(f"the window of session {self.session} is gone")


def find_window(session: str, display: str | None = None) -> SessionWindow | None:
    """Return the window of the session with this name; None if there is none.

    `display` is as in DISPLAY, which it is without. Blocks for some round trips to the
    X server; any thread. Raises `GraphicsError` when there is no display.
    """
    with _opened(display) as opened:
        for window in _windows(opened, opened.screen().root):
            title = _title(opened, window)
            if title and _is_of(session, title):
                return SessionWindow(session, window.id, title, display)
    return None


def _is_of(session: str, title: str) -> bool:
    _, found, rest = title.partition(session)
    # "...-dp24" is the name of a session, "...-dp245" that of another one.
    return bool(found) and not (rest[:1].isalnum() or rest[:1] in ("-", "_", "."))


@contextmanager
def _opened(name: str | None) -> Iterator[Display]:
    # Xlib would leave sockets behind.
    check_display(os.environ.get("DISPLAY", "") if name is None else name)
    try:
        display = Display(name)
    except (error.DisplayError, error.XauthError, OSError) as problem:
        raise GraphicsError(f"cannot open the X display: {problem}") from problem
    try:
        # An error of a request that nobody waits for would be printed.
        display.set_error_handler(lambda *_: None)
        yield display
    except (error.ConnectionClosedError, error.XError) as problem:
        raise GraphicsError(f"the X display: {problem}") from problem
    finally:
        display.close()


def _windows(display: Display, root: Window) -> Iterator[Window]:
    """Yield all windows: those that a window manager lists, then the tree."""
    listed = root.get_full_property(
        display.intern_atom("_NET_CLIENT_LIST"), Xatom.WINDOW
    )
    numbers = list(listed.value) if listed is not None else []
    for number in numbers[:MOST_WINDOWS]:
        yield display.create_resource_object("window", number)
    # Upper ones last in each answer; the newest is looked at first.
    waiting, seen = [root], 0
    while waiting and seen < MOST_WINDOWS:
        window = waiting.pop(0)
        seen += 1
        yield window
        try:
            waiting += reversed(window.query_tree().children)
        except error.BadWindow:
            continue


def _title(display: Display, window: Window) -> str | None:
    """Return the title of a window, "" if it has none; None if it is gone."""
    try:
        for name, encoding in ((display.intern_atom("_NET_WM_NAME"), "utf-8"),
                               (Xatom.WM_NAME, "latin-1")):  # fmt: skip
            found = window.get_property(
                name, X.AnyPropertyType, 0, MOST_TITLE_BYTES // 4
            )
            if found is not None and found.format == 8 and found.value:
                value = found.value
                if isinstance(value, str):
                    return value
                return bytes(value).decode(encoding, "replace")
    except error.BadWindow:
        return None
    return ""


def _put(window: Window, name: int, kind: int, text: bytes) -> None:
    # That the window is gone is found out afterwards.
    window.change_property(name, kind, 8, text, onerror=error.CatchError())


def _has_manager(display: Display, root: Window) -> bool:
    """Whether a window manager runs that knows how to activate a window (EWMH)."""
    atom = display.intern_atom("_NET_SUPPORTED")
    supported = root.get_full_property(atom, Xatom.ATOM)
    active = display.intern_atom("_NET_ACTIVE_WINDOW")
    return supported is not None and active in supported.value


def _top_level(window: Window, root: Window) -> Window:
    """Return the ancestor of a window that is a child of the root."""
    for _ in range(MOST_WINDOWS):
        parent = window.query_tree().parent
        if parent in (0, None) or parent == root:
            break
        window = parent
    return window
