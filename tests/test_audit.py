"""The audit of what is pinned: which advisories of an index it takes for a version."""

from __future__ import annotations

import http.server
import json
import runpy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.command import ROOT

# A mirror: of `mirrored` it knows the project only, of `known` each version.
ANSWERS = {
    "/mirrored/json": {"info": {"version": "2.0"}},
    "/known/json": {"info": {"version": "2.0"}},
    "/known/1.0/json": {"info": {"version": "1.0"}},
}


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def index() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("pin", "told"),
    [
        ("known/1.0", "1.0"),
        ("mirrored/2.0", "2.0"),
        ("mirrored/2", "2.0"),  # the same version, by its standard
        ("mirrored/1.0", None),
        ("unknown/1.0", None),
    ],
)
def test_a_pin_gets_the_advisories_of_its_own_version_and_no_other(
    index: str, pin: str, told: str | None
) -> None:
    advisories: Any = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["Advisories"]
    answer = advisories(requests.Session()).get(url=f"{index}/{pin}/json", timeout=20)
    assert answer.ok == (told is not None) == bool(advisories.known)
    assert told is None or answer.json()["info"]["version"] == told
