"""The live page, in a headless Chromium: what a person sees and what they do not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rtunnel import Tunnel
from rtunnel.status.model import ProcessStatus, now, of_process, of_tunnel
from rtunnel.status.server import StatusServer
from tests.support.sshd import Sshd
from tests.support.statuses import HOSTILE, connection, process, row
from tests.support.tunnels import (
    PORT_0,
    Target,
    echo,
    open_tunnel,
    read_exactly,
    visit,
)

WAIT_S = 60.0

HOLD = process(
    connection(
        row(
            connections_open=2, connections_total=12, bytes_in=1_500_000,
            bytes_out=2_000, stalled=1,
        ),
        row("db", "port taken", last_error="another process holds the port"),
        cipher="aes128-gcm@openssh.com", backend="engine", rtt_s=0.0123,
        rtt_best_s=0.0077, rekeys=4, reconnects=5,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that reaches nothing but this machine."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium is not None
    assert driver is not None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-extensions",
        "--no-first-run",
        "--proxy-server=direct://",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "--window-size=1280,800",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
    started = webdriver.Chrome(options=options, service=service)
    try:
        yield started
    finally:
        started.quit()


class Page:
    """The page of one status, which a test may change."""

    def __init__(self, browser: Any, server: StatusServer) -> None:
        self.browser = browser
        browser.get_log("browser")  # what an earlier page has left
        browser.get(server.url)

    def text(self, selector: str) -> str:
        """Return the text of the first element, once there is one."""
        found = self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))
        return str(self.script("return arguments[0].innerText", found[0]))

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element of this kind has this text."""
        code = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".some((each) => each.innerText.includes(arguments[1]))"
        )
        self.wait(lambda: self.script(code, selector, text))

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, WAIT_S, 0.05).until(lambda _: condition())

    def errors(self) -> list[str]:
        """Return what the browser complained of: blocked, not found, failed."""
        return [
            entry["message"]
            for entry in self.browser.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]


@pytest.fixture
def told() -> list[ProcessStatus]:
    """What the process tells: the last one."""
    return [HOLD]


@pytest.fixture
def page(browser: Any, told: list[ProcessStatus]) -> Iterator[Page]:
    with StatusServer(lambda: told[-1]) as server:
        yield Page(browser, server)
        browser.get("about:blank")


def test_the_page_shows_the_connection_and_each_listener(page: Page) -> None:
    page.shows("#ready", "not ready")
    head = page.text("section.connection")
    for part in (
        "home", "connected", "user@host:22", "12 ms, 7.7 at best",
        "aes128-gcm@openssh.com", "engine", "rekeys\n4", "reconnects\n5",
    ):  # fmt: skip
        assert part in head
    first = page.text("tr.listener:nth-child(1)")
    for part in ("8080 → localhost:3000", "listening", "2 / 12", "1.5 MB", "2.0 kB"):
        assert part in first
    assert "1 stalled" in page.text("td.stalled.warn")
    second = page.text("tr.listener:nth-child(2)")
    assert "port taken" in second
    assert "another process holds the port" in second
    assert page.errors() == []


def test_the_page_follows_what_happens(page: Page, told: list[ProcessStatus]) -> None:
    page.shows("tr.listener", "1.5 MB")
    told.append(process(connection(row(bytes_in=77_000_000))))
    page.shows("#ready", "ready")
    page.shows("tr.listener", "77.0 MB")
    page.shows(".rate", "MB/s")
    points = "return document.querySelector('polyline.in').getAttribute('points')"
    page.wait(lambda: len(page.script(points).split(" ")) >= 2)
    told.append(process())
    page.shows("main", "no connections")
    assert page.errors() == []


def test_nothing_that_others_wrote_becomes_part_of_the_page(
    page: Page, told: list[ProcessStatus]
) -> None:
    told.append(
        process(
            connection(row(HOSTILE, HOSTILE, last_error=HOSTILE), last_error=HOSTILE)
        )
    )
    page.shows("td.error", "<script>")
    assert page.script("return document.title") != "owned"
    assert page.script("return document.scripts.length") == 1
    assert page.errors() == []


def test_the_page_says_that_the_process_is_gone(
    browser: Any, told: list[ProcessStatus]
) -> None:
    with StatusServer(lambda: told[-1]) as server:
        page = Page(browser, server)
        page.shows("tr.listener", "8080")
    page.shows("#ready", "no answer")
    page.shows("#trouble", "What is below is old")
    page.shows("tr.listener", "8080")
    browser.get("about:blank")


def test_the_page_fits_a_narrow_screen(page: Page) -> None:
    page.shows("tr.listener", "8080")
    page.browser.set_window_size(500, 800)
    code = "return document.documentElement.scrollWidth <= window.innerWidth"
    page.wait(lambda: page.script(code))
    page.browser.set_window_size(1280, 800)


def test_the_page_shows_a_visitor_of_a_real_tunnel(
    browser: Any, sshd: Sshd, tmp_path: Path
) -> None:
    started = now()
    with open_tunnel(sshd, "engine") as tunnel, Target(echo) as target:
        listener = tunnel.listen(PORT_0, to=target.spec)

        def source(tunnel: Tunnel = tunnel) -> ProcessStatus:
            return of_process("open", started, (of_tunnel("home", tunnel),))

        with StatusServer(source) as server, visit(listener.port) as visitor:
            page = Page(browser, server)
            page.shows("#ready", "ready")
            page.shows("td.connections", "1 / 1")
            visitor.sendall(b"x" * 123_000)
            read_exactly(visitor, 123_000)
            page.shows("td.number", "123 kB")
            page.shows("dd", " ms")
            assert browser.save_screenshot(str(tmp_path / "page.png"))
            assert page.errors() == []
        browser.get("about:blank")
