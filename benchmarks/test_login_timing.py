"""How long a login takes that is right, wrong, or of nobody: the last two alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from passlib.hash import (  # type: ignore[import-untyped]
    apr_md5_crypt,
    bcrypt,
)
from pytest_benchmark.fixture import BenchmarkFixture

from x2go_session.broker.server.authentication.htpasswd import HtpasswdAuthenticator

HASHES = {"bcrypt": bcrypt.using(rounds=8), "md5": apr_md5_crypt}


@pytest.mark.parametrize("kind", HASHES)
@pytest.mark.parametrize(
    ("user", "password"),
    [("anna", "right"), ("anna", "wrong"), ("nobody", "wrong")],
)
def test_time_of_a_login(
    benchmark: BenchmarkFixture, tmp_path: Path, kind: str, user: str, password: str
) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"anna:{HASHES[kind].hash('right')}\n")
    authenticator = HtpasswdAuthenticator(path)
    benchmark(authenticator.verify, user, password)
