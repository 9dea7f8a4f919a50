"""The gateway lets in whom sshd lets in: the same keys, lines and clients at both.

Where it is stricter, on purpose, the case says so.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rtunnel.gateway import Gateway
from tests.support.gateways import ALLOCATED, Guest, Ssh
from tests.support.other_servers import run
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until

IN, REFUSED, OUT = "let in", "let in, and the forward refused", "kept out"


@dataclass(frozen=True)
class Keys:
    """The keys of all cases; CA has signed certificates of GUEST and of nobody else."""

    folder: Path

    def guest(self, name: str) -> Guest:
        guest = Guest.__new__(Guest)
        guest.user = getpass.getuser()
        guest.user_key = self.folder / name
        guest.known_hosts = self.folder / f"known_hosts_{free_port()}"
        return guest

    def line(self, template: str) -> str:
        for name in ("GUEST", "OTHER", "AUTHORITY", "RSA"):
            public = (self.folder / f"{name.lower()}.pub").read_text().strip()
            template = template.replace(name, public)
        return template


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("guest", "other", "authority"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    run("ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", folder / "rsa")
    return Keys(folder)


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    options = ("KbdInteractiveAuthentication no",)
    with Sshd(tmp_path_factory.mktemp("openssh"), *options) as server:
        yield server


def outcome(ssh: Ssh) -> str:
    with ssh:
        wait_until(lambda: ALLOCATED in ssh.said or ssh.process.poll() is not None)
        if ALLOCATED in ssh.said:
            return IN
        if "Permission denied (publickey)" in ssh.said:
            return OUT
        assert "remote port forwarding failed" in ssh.said, ssh.said
        return REFUSED


def at_openssh(server: Sshd, guest: Guest, line: str, *options: str) -> str:
    server.authorized_keys.write_text(line + "\n")
    guest.port = server.port
    guest.known_hosts.write_text(server.known_hosts.read_text())
    return outcome(guest.forward(9, "0", *options))


def at_gateway(guest: Guest, line: str, *options: str) -> str:
    with Gateway(authorized_keys=line.splitlines()) as gateway:
        guest.meet(gateway)
        return outcome(guest.forward(9, "0", *options))


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("GUEST", "guest", IN),
        ("GUEST", "other", OUT),
        ("GUEST\nOTHER", "other", IN),
        ("OTHER\n# GUEST", "guest", OUT),
        ("  GUEST with a comment", "guest", IN),
        ("RSA", "rsa", IN),
        ('from="127.0.0.1" GUEST', "guest", IN),
        ('from="10.0.0.0/8" GUEST', "guest", OUT),
        ('from="127.0.0.*" GUEST', "guest", IN),
        ('from="!127.0.0.1,*" GUEST', "guest", OUT),
        ('from="*,!10.0.0.0/8" GUEST', "guest", IN),
        ('from="10.0.0.1",no-pty GUEST\nGUEST', "guest", IN),
        ('expiry-time="20200101" GUEST', "guest", OUT),
        ('expiry-time="20990101" GUEST', "guest", IN),
        ('expiry-time="20200101" GUEST\nOTHER', "other", IN),
        ("restrict GUEST", "guest", REFUSED),
        ("restrict,port-forwarding GUEST", "guest", IN),
        ("no-port-forwarding GUEST", "guest", REFUSED),
        ('permitlisten="1" GUEST', "guest", REFUSED),
        ('permitlisten="*:*" GUEST', "guest", IN),
        ("made-up GUEST\nOTHER", "guest", OUT),
        ('command="unclosed GUEST\nOTHER', "guest", OUT),
        ("cert-authority GUEST\nOTHER", "guest", OUT),
        ("cert-authority AUTHORITY", "guest", OUT),
        ("ssh-ed25519 AAAA\nGUEST", "guest", IN),
        ("ssh-rsa GUEST\nOTHER", "guest", OUT),
    ],
)
def test_a_key_is_good_for_the_same_at_both(
    openssh: Sshd, keys: Keys, line: str, key: str, expected: str
) -> None:
    line = keys.line(line)
    assert at_openssh(openssh, keys.guest(key), line) == expected
    assert at_gateway(keys.guest(key), line) == expected


USER = getpass.getuser()


@pytest.mark.parametrize(
    ("line", "certificate", "expected"),
    [
        ("cert-authority AUTHORITY", ("-n", USER), IN),
        ("cert-authority AUTHORITY", ("-n", "somebody"), OUT),
        ("cert-authority AUTHORITY", ("-n", USER, "-V", "20200101:20200102"), OUT),
        ("cert-authority AUTHORITY", ("-n", USER, "-V", "20990101:20990102"), OUT),
        (
            "cert-authority AUTHORITY",
            ("-n", USER, "-O", "source-address=10.0.0.0/8"),
            OUT,
        ),
        (
            "cert-authority AUTHORITY",
            ("-n", USER, "-O", "critical:made-up@example.org=1"),
            OUT,
        ),
        ("cert-authority AUTHORITY", ("-n", USER, "-O", "clear"), REFUSED),
        ('cert-authority,principals="ops" AUTHORITY', ("-n", USER), OUT),
        ('cert-authority,principals="ops" AUTHORITY', ("-n", "ops,dev"), IN),
        ('cert-authority,from="10.0.0.1" AUTHORITY', ("-n", USER), OUT),
        ("cert-authority,no-port-forwarding AUTHORITY", ("-n", USER), REFUSED),
        ("AUTHORITY", ("-n", USER), OUT),
        ("cert-authority OTHER", ("-n", USER), OUT),
    ],
)
def test_a_certificate_is_good_for_the_same_at_both(
    openssh: Sshd,
    keys: Keys,
    tmp_path: Path,
    line: str,
    certificate: tuple[str, ...],
    expected: str,
) -> None:
    own = Keys(tmp_path)
    for name in ("guest", "other", "authority", "rsa"):
        for suffix in ("", ".pub"):
            content = (keys.folder / f"{name}{suffix}").read_bytes()
            (tmp_path / f"{name}{suffix}").write_bytes(content)
            (tmp_path / f"{name}{suffix}").chmod(0o600)
    run(
        *("ssh-keygen", "-q", "-s", str(tmp_path / "authority"), "-I", "an id"),
        *(*certificate, str(tmp_path / "guest.pub")),
    )
    line = own.line(line)
    assert at_openssh(openssh, own.guest("guest"), line) == expected
    assert at_gateway(own.guest("guest"), line) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-o", "PubkeyAcceptedAlgorithms=rsa-sha2-256"), IN),
        (("-o", "PubkeyAcceptedAlgorithms=rsa-sha2-512"), IN),
        # SHA-1 is what CVE-2026-44405 of paramiko is about.
        (("-o", "PubkeyAcceptedAlgorithms=ssh-rsa"), OUT),
    ],
)
def test_a_signature_is_good_at_both_or_at_none(
    openssh: Sshd, keys: Keys, options: tuple[str, ...], expected: str
) -> None:
    line = keys.line("RSA")
    assert at_openssh(openssh, keys.guest("rsa"), line, *options) == expected
    assert at_gateway(keys.guest("rsa"), line, *options) == expected


@pytest.mark.parametrize("method", ["none", "password", "keyboard-interactive"])
def test_no_other_method_lets_anybody_in(
    openssh: Sshd, keys: Keys, method: str
) -> None:
    line = keys.line("GUEST")
    options = ("-o", f"PreferredAuthentications={method}")
    assert at_openssh(openssh, keys.guest("guest"), line, *options) == OUT
    assert at_gateway(keys.guest("guest"), line, *options) == OUT
