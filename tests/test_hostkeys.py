"""A server is trusted when known_hosts vouches for it, and refused with the reason."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.errors import (
    ConfigError,
    HostKeyChanged,
    HostKeyError,
    HostKeyRevoked,
    HostKeyUnknown,
)
from rtunnel.ssh.config import resolve
from rtunnel.ssh.host_certificates import BadCertificate, read_host_certificate
from rtunnel.ssh.hostkeys import HostKeyChecker
from rtunnel.ssh.known_hosts import fingerprint, read_known_hosts
from rtunnel.ssh.options import HostKeyPrompt, HostKeyQuestion, Options

pytestmark = pytest.mark.usefixtures("keys")

# ssh-keygen -s ca -I host -h -n web host.pub
CERTIFICATE = (
    "ecdsa-sha2-nistp256-cert-v01@openssh.com "
    "AAAAKGVjZHNhLXNoYTItbmlzdHAyNTYtY2VydC12MDFAb3BlbnNzaC5jb20AAAAg6v75HNSDVTeM"
    "QI7gPnDmXugJeue7OAxR/yKFksKbKowAAAAIbmlzdHAyNTYAAABBBH64DH0mt8PleZOyC4ikU5Ve"
    "B/JNkQAIi5uMUa57hJXER8tRxgBVfyKAExOu9tDmtQU5kN/cDGqNRIVP70w+xbQAAAAAAAAAAAAA"
    "AAIAAAAEaG9zdAAAAAcAAAADd2ViAAAAAAAAAAD//////////wAAAAAAAAAAAAAAAAAAAGgAAAAT"
    "ZWNkc2Etc2hhMi1uaXN0cDI1NgAAAAhuaXN0cDI1NgAAAEEEfrgMfSa3w+V5k7ILiKRTlV4H8k2R"
    "AAiLm4xRrnuElcRHy1HGAFV/IoATE6720Oa1BTmQ39wMao1EhU/vTD7FtAAAAGQAAAATZWNkc2Et"
    "c2hhMi1uaXN0cDI1NgAAAEkAAAAgRczp7VOJyiVXK+z+dZL1dAfpNfrilJfjVihYgsBQqdwAAAAh"
    "APtQUBGKHnjeoLC0VbS93GL40xfnhmQ7DuiVax8oq76T"
)


def keygen(*arguments: str) -> str:
    done = subprocess.run(
        ["ssh-keygen", *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name, kind in (("ed", "ed25519"), ("ed2", "ed25519"), ("ec", "ecdsa")):
        keygen("-q", "-t", kind, "-N", "", "-C", "", "-f", str(folder / name))
    return folder


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


def public(keys: Path, name: str) -> str:
    return (keys / f"{name}.pub").read_text().strip()


def key(keys: Path, name: str) -> paramiko.PKey:
    """Return the public key as a transport has it from the server."""
    kind, text = public(keys, name).split()[:2]
    return paramiko.PKey.from_type_string(kind, base64.b64decode(text))


def checker(
    known: Path,
    destination: str = "web",
    *,
    prompt: HostKeyPrompt | None = None,
    **options: object,
) -> HostKeyChecker:
    given = Options(config_file="none", known_hosts=known, **options)  # type: ignore[arg-type]
    return HostKeyChecker(resolve(destination, given), prompt)


def certificate(
    keys: Path, authority: str, *arguments: str, host: bool = True
) -> paramiko.PKey:
    """Sign the key `ed` and return it as a transport has it from the server."""
    flags = ["-h"] if host else []
    keygen("-q", "-s", str(keys / authority), "-I", "id", *flags, *arguments,
           str(keys / "ed.pub"))  # fmt: skip
    signed = key(keys, "ed")
    signed.load_certificate(str(keys / "ed-cert.pub"))
    return signed


@pytest.mark.parametrize(
    ("destination", "hosts"),
    [
        ("web", "web"),
        ("WEB", "web"),
        ("web", "Web"),
        ("web", "db,web,10.0.0.1"),
        ("web", "w?b"),
        ("web.example.org", "*.example.org,!db.example.org"),
        ("web:2222", "[web]:2222"),
        ("web:2222", "web"),
        ("web:2222", "*"),
        ("::1", "::1"),
        ("[::1]:2222", "[::1]:2222"),
    ],
)
def test_a_line_with_the_key_vouches_for_the_host(
    keys: Path, known: Path, destination: str, hosts: str
) -> None:
    known.write_text(f"# comment\n\n{hosts} {public(keys, 'ed')}\n")
    checker(known, destination).check(key(keys, "ed"))


@pytest.mark.parametrize(
    ("destination", "hosts"),
    [
        ("web", "db"),
        ("web", "webs"),
        ("web", "*,!web"),
        ("web", "[web]:2222"),
        ("web:2223", "[web]:2222"),
    ],
)
def test_a_line_about_another_host_vouches_for_nothing(
    keys: Path, known: Path, destination: str, hosts: str
) -> None:
    known.write_text(f"{hosts} {public(keys, 'ed')}\n")
    with pytest.raises(HostKeyUnknown):
        checker(known, destination).check(key(keys, "ed"))


@pytest.mark.parametrize("destination", ["web", "web:2222"])
def test_a_name_hashed_by_ssh_keygen_is_found(
    keys: Path, known: Path, destination: str
) -> None:
    known.write_text(f"web,[web]:2222 {public(keys, 'ed')}\n")
    keygen("-H", "-f", str(known))
    assert "web" not in known.read_text()
    checker(known, destination).check(key(keys, "ed"))
    with pytest.raises(HostKeyUnknown):
        checker(known, "db").check(key(keys, "ed"))


def test_the_right_key_may_stand_in_any_line_of_any_file(
    keys: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(f"web {public(keys, 'ec')}\nweb {public(keys, 'ed2')}\n")
    second.write_text(f"web {public(keys, 'ed')}\n")
    options = Options(config_file="none", known_hosts=[first, tmp_path / "no", second])
    HostKeyChecker(resolve("web", options)).check(key(keys, "ed"))


def test_an_unknown_key_is_refused_with_fingerprint_files_and_advice(
    keys: Path, known: Path
) -> None:
    shown = keygen("-lf", str(keys / "ed.pub")).split()[1]
    with pytest.raises(HostKeyUnknown) as caught:
        checker(known, "web:2222").check(key(keys, "ed"))
    text = str(caught.value)
    assert f"host key of [web]:2222 is not known: ssh-ed25519 {shown}" in text
    assert f"no line of {known} is about it" in text
    assert f"ssh-keyscan -t ed25519 -p 2222 web >> {known}" in text


def test_a_changed_key_is_refused_with_line_both_fingerprints_and_advice(
    keys: Path, known: Path
) -> None:
    known.write_text(f"\nweb {public(keys, 'ed2')}\n")
    with pytest.raises(HostKeyChanged) as caught:
        checker(known).check(key(keys, "ed"))
    text = str(caught.value)
    assert f"shows ssh-ed25519 {fingerprint(key(keys, 'ed').asbytes())}" in text
    assert f"{known} line 2 has ssh-ed25519" in text
    assert fingerprint(key(keys, "ed2").asbytes()) in text
    assert f"ssh-keygen -R web -f {known}" in text


def test_the_advice_for_a_changed_key_really_removes_it(
    keys: Path, known: Path
) -> None:
    known.write_text(f"[web]:2222 {public(keys, 'ed2')}\n")
    with pytest.raises(HostKeyChanged) as caught:
        checker(known, "web:2222").check(key(keys, "ed"))
    command = str(caught.value).rpartition(": ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    with pytest.raises(HostKeyUnknown):
        checker(known, "web:2222").check(key(keys, "ed"))


@pytest.mark.parametrize("policy", ["yes", "ask", "accept-new", "no"])
def test_no_policy_accepts_a_changed_key(keys: Path, known: Path, policy: str) -> None:
    known.write_text(f"web {public(keys, 'ed2')}\n")
    with pytest.raises(HostKeyChanged):
        checker(known, host_key_policy=policy, prompt=lambda _: True).check(
            key(keys, "ed")
        )


def test_a_key_of_another_type_than_the_known_one_is_not_known(
    keys: Path, known: Path
) -> None:
    known.write_text(f"web {public(keys, 'ec')}\n")
    with pytest.raises(HostKeyUnknown, match="line 1 has only ecdsa-sha2-nistp256"):
        checker(known).check(key(keys, "ed"))
    with pytest.raises(HostKeyChanged):
        checker(known, host_key_policy="accept-new").check(key(keys, "ed"))


def test_a_revoked_key_is_refused_even_if_it_is_known(keys: Path, known: Path) -> None:
    line = public(keys, "ed")
    known.write_text(f"web {line}\n@revoked * {line}\n")
    with pytest.raises(HostKeyRevoked, match=f"revoked at {known} line 2"):
        checker(known, host_key_policy="no").check(key(keys, "ed"))


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("policy", ["accept-new", "no"])
def test_accept_new_adds_the_key_once(
    keys: Path, tmp_path: Path, policy: str, hashed: bool
) -> None:
    known = tmp_path / "sub" / "known_hosts"
    options = {"HashKnownHosts": "yes" if hashed else "no"}
    for _ in range(2):
        checker(known, "web:2222", host_key_policy=policy, ssh_options=options).check(
            key(keys, "ed")
        )
    (line,) = known.read_text().splitlines()
    assert line.startswith("|1|" if hashed else "[web]:2222 ssh-ed25519 ")
    assert known.stat().st_mode & 0o777 == 0o600
    checker(known, "web:2222", host_key_policy="yes").check(key(keys, "ed"))
    keygen("-F", "[web]:2222", "-f", str(known))


def test_a_key_is_added_on_a_line_of_its_own(keys: Path, known: Path) -> None:
    known.write_text("db ssh-ed25519 AAAA")  # no newline at the end
    checker(known, host_key_policy="accept-new").check(key(keys, "ed"))
    assert len(known.read_text().splitlines()) == 2


def test_a_file_that_cannot_be_written_does_not_stop_the_connection(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").write_text("")
    path = tmp_path / "plain" / "known_hosts"
    options = Options(config_file="none", ssh_options={
        "UserKnownHostsFile": f"/dev/null {tmp_path / 'none'}",
        "StrictHostKeyChecking": "no",
    })  # fmt: skip
    HostKeyChecker(resolve("web", options)).check(key(keys, "ed"))
    with pytest.raises(ConfigError, match="cannot read"):
        checker(path)


def test_the_prompt_decides_on_an_unknown_key(keys: Path, known: Path) -> None:
    asked: list[HostKeyQuestion] = []

    def refuse(question: HostKeyQuestion) -> bool:
        asked.append(question)
        return False

    with pytest.raises(HostKeyUnknown, match="not accepted"):
        checker(known, prompt=refuse).check(key(keys, "ed"))
    assert asked[0].host == "web"
    assert asked[0].fingerprint == fingerprint(key(keys, "ed").asbytes())
    checker(known, prompt=lambda _: True).check(key(keys, "ed"))
    checker(known, prompt=refuse).check(key(keys, "ed"))
    assert len(asked) == 1


def test_the_strict_policy_does_not_ask(keys: Path, known: Path) -> None:
    with pytest.raises(HostKeyUnknown):
        checker(known, prompt=lambda _: True, host_key_policy="yes").check(
            key(keys, "ed")
        )


def test_an_alias_is_the_name_that_is_looked_up(keys: Path, known: Path) -> None:
    known.write_text(f"pool {public(keys, 'ed')}\n")
    options = {"HostKeyAlias": "Pool"}
    checker(known, "web:2222", ssh_options=options).check(key(keys, "ed"))


def test_algorithms_of_known_keys_are_offered_first(keys: Path, known: Path) -> None:
    assert checker(known).algorithms()[0] == "ssh-ed25519"
    known.write_text(f"web {public(keys, 'ec')}\n")
    assert checker(known).algorithms()[:2] == ("ecdsa-sha2-nistp256", "ssh-ed25519")
    assert "ssh-rsa" not in checker(known).algorithms()
    known.write_text(f"@cert-authority web {public(keys, 'ec')}\n")
    assert checker(known).algorithms()[0] == "ssh-ed25519-cert-v01@openssh.com"


def test_damaged_lines_vouch_for_nobody(keys: Path, known: Path) -> None:
    kind, text = public(keys, "ed").split()[:2]
    known.write_text(
        f"web\nweb {kind}\nweb {kind} !!!\n@marked web {kind} {text}\n"
        f"web ssh-rsa {text}\nweb {kind} AAAA\n|1|x {kind} {text}\n\xff\n"
    )
    assert [line.line for line in read_known_hosts([known])] == [7]
    with pytest.raises(HostKeyUnknown):
        checker(known).check(key(keys, "ed"))


def test_a_certificate_of_a_known_authority_vouches_for_the_host(
    keys: Path, known: Path
) -> None:
    known.write_text(f"@cert-authority *.org,web {public(keys, 'ec')}\n")
    signed = certificate(keys, "ec", "-n", "web,*.example.org", "-V", "-1m:+1h")
    checker(known).check(signed)
    checker(known, "web:2222").check(signed)
    checker(known, "a.example.org").check(signed)


@pytest.mark.parametrize(
    ("authority", "arguments", "host", "says"),
    [
        ("ec", ["-n", "db"], True, "it is for db, not for web"),
        ("ec", ["-n", "web", "-V", "-2h:-1h"], True, "expired"),
        ("ec", ["-n", "web", "-V", "+1h:+2h"], True, "not valid yet"),
        ("ec", ["-n", "web", "-O", "critical:x@y=1"], True, "critical options"),
        ("ec", ["-n", "web"], False, "user's certificate"),
        ("ed2", ["-n", "web"], True, None),
    ],
)
def test_a_certificate_that_is_not_right_counts_as_a_plain_key(
    keys: Path,
    known: Path,
    caplog: pytest.LogCaptureFixture,
    authority: str,
    arguments: list[str],
    host: bool,
    says: str | None,
) -> None:
    known.write_text(f"@cert-authority * {public(keys, 'ec')}\n")
    signed = certificate(keys, authority, *arguments, host=host)
    with pytest.raises(HostKeyUnknown):
        checker(known).check(signed)
    assert says is None or says in caplog.text
    with known.open("a") as file:
        file.write(f"web {public(keys, 'ed')}\n")
    checker(known).check(signed)


def test_a_certificate_with_a_wrong_signature_is_not_used(
    keys: Path, known: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known.write_text(f"@cert-authority * {public(keys, 'ec')}\n")
    signed = certificate(keys, "ec", "-n", "web")
    blob = bytearray(signed.public_blob.key_blob)  # type: ignore[attr-defined]
    blob[60] ^= 1  # inside the nonce
    signed.public_blob.key_blob = bytes(blob)  # type: ignore[attr-defined]
    with pytest.raises(HostKeyUnknown):
        checker(known).check(signed)
    signed.public_blob.key_blob = bytes(blob[:80])  # type: ignore[attr-defined]
    with pytest.raises(HostKeyUnknown):
        checker(known).check(signed)
    assert "is not used" in caplog.text


@given(st.data())
def test_a_damaged_certificate_is_bad_and_nothing_worse(
    data: st.DataObject,
) -> None:
    blob = bytearray(paramiko.pkey.PublicBlob.from_string(CERTIFICATE).key_blob)
    place = data.draw(st.integers(0, len(blob) - 1))
    flip = data.draw(st.integers(1, 255))
    blob[place] ^= flip
    with pytest.raises(BadCertificate):
        read_host_certificate(bytes(blob))
    with pytest.raises(BadCertificate):
        read_host_certificate(bytes(blob[:place]))


def test_a_revoked_authority_is_refused(keys: Path, known: Path) -> None:
    line = public(keys, "ec")
    known.write_text(f"@cert-authority * {line}\n@revoked * {line}\n")
    with pytest.raises(HostKeyRevoked, match="authority"):
        checker(known).check(certificate(keys, "ec", "-n", "web"))


def test_every_refusal_is_one_kind_of_error() -> None:
    assert issubclass(HostKeyRevoked, HostKeyError)
    assert HostKeyChanged.code == 9
