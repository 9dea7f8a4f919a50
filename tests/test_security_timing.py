"""What an answer may not tell by its time: which work is done, not how long it takes.

`benchmarks/test_login_timing.py` has the times.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import pytest
from passlib.hash import (  # type: ignore[import-untyped]
    apr_md5_crypt,
    bcrypt,
    sha512_crypt,
)

from x2go_session.broker.server.authentication.htpasswd import HtpasswdAuthenticator
from x2go_session.broker.server.cookies import is_preset


@pytest.mark.parametrize("scheme", [bcrypt, apr_md5_crypt, sha512_crypt])
def test_a_user_who_is_not_there_is_verified_by_a_hash_of_the_same_kind(
    tmp_path: Path, scheme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"anna:{scheme.hash('right')}\n")
    authenticator = HtpasswdAuthenticator(path)
    kinds: list[str] = []
    verify = authenticator._context.verify

    def noting(password: str, stored: str) -> bool:
        kinds.append(authenticator._context.identify(stored))
        right: bool = verify(password, stored)
        return right

    monkeypatch.setattr(authenticator._context, "verify", noting)
    assert authenticator.verify("anna", "right")
    assert not authenticator.verify("anna", "wrong")
    assert not authenticator.verify("nobody", "wrong")
    # Whose hash it is that is tried does not make the password a right one.
    assert not authenticator.verify("nobody", "right")
    assert kinds == [scheme.name] * 4


def test_a_preset_authid_is_compared_by_digests_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[int, int]] = []

    def noting(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", noting)
    assert is_preset("the authid", "the authid")
    assert not is_preset("t", "the authid")
    assert not is_preset("the authid and more", "the authid")
    assert compared == [(64, 64)] * 3
