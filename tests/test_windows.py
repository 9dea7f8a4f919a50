"""The window of a session is found, named and brought to front, on a real display."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import Xlib.display

from tests.support.x2go import PATIENCE_S, Display, run, wait_until
from x2go_session.errors import GraphicsError
from x2go_session.windows import SessionWindow, find_window

SESSION = "user-50-1795190498_stDXFCE_dp24"


@contextmanager
def program(display: Display, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program on the display for the time of a block."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "DISPLAY": display.name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def display() -> Iterator[Display]:
    screen = Display("640x480x24")
    try:
        yield screen
    finally:
        screen.stop()


@pytest.fixture(params=["a window manager", "none"])
def managed(request: pytest.FixtureRequest, display: Display) -> Iterator[bool]:
    """Whether a window manager runs on the display: both ways."""
    if request.param == "none":
        yield False
        return
    with program(display, "openbox", "--config-file", "/etc/xdg/openbox/rc.xml"):
        wait_until(lambda: "0x" in xprop(display, "-root", "_NET_SUPPORTING_WM_CHECK"))
        yield True


def xprop(display: Display, *arguments: str) -> str:
    return run("xprop", "-display", display.name, *arguments)


def clock(display: Display, title: str, place: str = "+50+50") -> Any:
    return program(display, "xclock", "-title", title, "-geometry", f"200x200{place}")


def found(display: Display, session: str = SESSION) -> SessionWindow:
    wait_until(lambda: find_window(session, display.name) is not None)
    window = find_window(session, display.name)
    assert window is not None
    return window


def order(display: Display, *titles: str) -> list[str]:
    """Return these titles, the frontmost window first."""
    tree = display.windows()
    return sorted(titles, key=lambda title: tree.index(f'"{title}'))


def test_a_window_is_found_by_the_name_of_its_session(
    display: Display, managed: bool
) -> None:
    assert find_window(SESSION, display.name) is None
    with clock(display, f"X2GO-{SESSION}5"), clock(display, "other"):
        with clock(display, f"X2GO-{SESSION}"):
            window = found(display)
            assert window.title == f"X2GO-{SESSION}"
            shown = xprop(display, "-id", str(window.number), "WM_NAME", "WM_CLASS")
            assert f'"X2GO-{SESSION}"' in shown
            assert '"XClock"' in shown
        wait_until(lambda: find_window(SESSION, display.name) is None)
        assert find_window(f"{SESSION}5", display.name) is not None


def test_a_window_gets_a_title_and_is_found_again(
    display: Display, managed: bool
) -> None:
    with clock(display, f"X2GO-{SESSION}"):
        window = found(display)
        title = window.set_title("Büro\n für  日本")
        assert title == f"X2GO-{SESSION} Büro für 日本"
        assert found(display) == SessionWindow(
            SESSION, window.number, title, display.name
        )
        names = ("_NET_WM_NAME", "WM_NAME", "_NET_WM_ICON_NAME", "WM_ICON_NAME")
        for name in names:
            said = xprop(display, "-id", str(window.number), "-f", name, "8u", name)
            assert SESSION in said
        assert window.set_title(f"Office {SESSION}") == f"Office {SESSION}"
        assert found(display).title == f"Office {SESSION}"
        assert window.set_title("") == f"X2GO-{SESSION}"


def listed(display: Display) -> list[str]:
    """Return the windows that the window manager knows."""
    return re.findall("0x[0-9a-f]+", xprop(display, "-root", "_NET_CLIENT_LIST"))


def focused(display: Display) -> int:
    """Return the number of the window that has the keyboard."""
    opened = Xlib.display.Display(display.name)
    try:
        focus = opened.get_input_focus().focus
        return getattr(focus, "id", 0)
    finally:
        opened.close()


def test_a_window_comes_to_the_front_and_gets_the_keyboard(
    display: Display, managed: bool
) -> None:
    title = f"X2GO-{SESSION}"
    # Clocks want no keyboard.
    with program(display, "xterm", "-title", title, "-e", "sleep", "600"):
        window = found(display)
        with clock(display, "other"):
            other = found(display, "other")
            # A window manager puts a new window where it likes.
            wait_until(lambda: not managed or len(listed(display)) == 2)
            for _ in range(2):
                other.activate()
                wait_until(lambda: order(display, "other", title) == ["other", title])
                window.activate()
                wait_until(lambda: order(display, "other", title) == [title, "other"])
                wait_until(lambda: focused(display) == window.number)


def test_a_window_that_is_gone_is_an_error_that_names_its_session(
    display: Display, managed: bool
) -> None:
    with clock(display, f"X2GO-{SESSION}"):
        window = found(display)
    wait_until(lambda: find_window(SESSION, display.name) is None)
    for attempt in (window.activate, lambda: window.set_title("x")):
        with pytest.raises(GraphicsError, match=f"of session {SESSION} is gone"):
            attempt()


@pytest.mark.parametrize("name", [":9999", "nonsense"])
def test_a_display_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(GraphicsError, match=f"no X (display|server).*{name}"):
        find_window(SESSION, name)
