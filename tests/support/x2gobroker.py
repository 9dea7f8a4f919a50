"""Debian's x2gobroker on loopback, for a user of the X2Go server of the run.

Users are those of its own test suite: `test` with the password `sweet`. What it writes
is in a folder of its own, which the broker's system user can reach.
"""

from __future__ import annotations

import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import trustme

from tests.support.ports import free_port, wait_listening
from tests.support.x2go import PATIENCE_S, X2goServer, run

PROGRAM = "/usr/bin/x2gobroker"
# The same for logins: as the broker's user, by the rights of a group.
SSH_PROGRAM = "/usr/bin/x2gobroker-ssh"
SSH_GROUP = "x2gobroker-users"
AGENT = "/usr/lib/x2go/x2gobroker-agent"
DAEMON = "x2gobroker"
USER, PASSWORD = "test", "sweet"

GLOBAL = """\
[global]
default-auth-mech=testsuite
my-cookie-file={folder}/authid
{options}

[broker_inifile]
enable=true
session-profiles={folder}/profiles
"""
PROFILES = """\
[DEFAULT]
command=TERMINAL
host={host}
sshport={port}
user={user}
kdrive=false
sound=false
xinerama=false

[office]
name=Office: Käse & <Co>
rootless=true

[resumable]
name=With an agent
host={name} ({host})
broker-agent-query-mode=LOCAL

[autologin]
name=With a key of the broker
broker-agent-query-mode=LOCAL
broker-session-autologin=true
broker-authorized-keys=%h/.x2go/authorized_keys

[down]
name=No server is up
host={host},127.0.0.2
sshport={nobody}
"""


class X2goBroker:
    """An x2gobroker that knows the X2Go server; HTTPS if there is a certificate."""

    def __init__(
        self,
        server: X2goServer,
        *options: str,
        certificate: trustme.LeafCert | None = None,
    ) -> None:
        missing = [
            each for each in (PROGRAM, SSH_PROGRAM, AGENT) if not Path(each).exists()
        ]
        if missing:
            pytest.fail(f"this needs {', '.join(missing)}: see .ci/prepare")
        self._server = server
        self._options = options
        self._certificate = certificate
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="x2gobroker-"))
        # Whatever `cookie-directory` says: it takes itself for another user.
        home = Path(pwd.getpwnam(DAEMON).pw_dir)
        self._cookies = home / ".x2go/broker-cookies"
        self._others = self.cookies()

    def start(self) -> X2goBroker:
        """Write its files, and wait until it listens."""
        self.folder.chmod(0o755)
        run("gpasswd", "--add", self._server.user, SSH_GROUP)
        self._write("x2gobroker.conf", GLOBAL.format(
            folder=self.folder, options="\n".join(self._options)
        ))  # fmt: skip
        self._write("profiles", PROFILES.format(
            host=self._server.host, port=self._server.port, user=self._server.user,
            name=socket.gethostname(), nobody=free_port(),
        ))  # fmt: skip
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "X2GOBROKER_CONFIG": f"{self.folder}/x2gobroker.conf",
            "X2GOBROKER_SESSIONPROFILES": f"{self.folder}/profiles",
        }
        # What a login on the broker's machine runs.
        words = [f"{name}={value}" for name, value in environment.items()]
        self.program = self._write(
            "x2gobroker",
            f'#!/bin/sh\nexec env {shlex.join(words)} {SSH_PROGRAM} "$@"\n',
        )
        self.program.chmod(0o755)
        if self._certificate is not None:
            chain = b"".join(pem.bytes() for pem in self._certificate.cert_chain_pems)
            key = self._certificate.private_key_pem.bytes().decode()
            environment["X2GOBROKER_SSL_CERTFILE"] = str(
                self._write("certificate", chain.decode())
            )
            environment["X2GOBROKER_SSL_KEYFILE"] = str(self._write("key", key))
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, DAEMON, DAEMON)
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--reuid", DAEMON, "--regid", DAEMON, "--init-groups",
                 PROGRAM, "-M", "HTTP", "-b", f"127.0.0.1:{self.port}",
                 "-C", environment["X2GOBROKER_CONFIG"]],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_listening(self.port, PATIENCE_S)
        return self

    def url(self, form: str = "plain", host: str = "127.0.0.1") -> str:
        """Return the URL for a form of its answers."""
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{USER}@{host}:{self.port}/{form}/inifile/"

    @property
    def ssh_url(self) -> str:
        """The URL of the broker by SSH, for the user of the X2Go server."""
        return f"ssh://{self._server.destination}{self.program}"

    def cookies(self) -> set[str]:
        """Return the authids that it would take now."""
        if not self._cookies.exists():
            return set()
        return {each.name for each in self._cookies.iterdir()}

    def forget_cookies(self) -> None:
        """Have it know none of its authids any more."""
        for name in self.cookies() - self._others:
            (self._cookies / name).unlink()

    def set_authid(self, authid: str) -> None:
        """Have one authid known to it and to its users."""
        self._write("authid", f"{authid}\n")

    def log(self) -> str:
        """Return what it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End it, and remove its files."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self.forget_cookies()
        shutil.rmtree(self.folder)

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path
