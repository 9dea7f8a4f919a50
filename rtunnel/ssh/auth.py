"""Log in: which methods to try, in which order, and what to say when all failed.

The first request is "none", whose refusal lists the methods the server has (RFC 4252,
section 5.2). Then the first of our methods that the server would continue with is
tried until it has nothing left, then the next. After a partial success (5.1) the list
is a new one and the order starts over: a key that was accepted is not shown again,
passwords may be asked again.

Nobody is asked anything before the server said that the answer is of use: a locked
key, or an agent that confirms, only after the server would accept the key.

Secrets are in no message and no log line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import paramiko

from rtunnel.errors import AuthenticationFailed, HostUnreachable
from rtunnel.ssh.algorithms import choose
from rtunnel.ssh.host_certificates import CERTIFICATE_SUFFIX
from rtunnel.ssh.hostkeys import HOST_KEY_ALGORITHMS
from rtunnel.ssh.identities import (
    CannotSign,
    Identities,
    Identity,
    signature_algorithm,
)
from rtunnel.ssh.options import HostConfig, InteractiveQuestion, Options
from rtunnel.ssh.userauth import Answer, Disconnected, UserAuth

log = logging.getLogger(__name__)

# What users may sign with is what hosts may: the algorithms `cryptography` has.
PUBKEY_ALGORITHMS = (
    *(name + CERTIFICATE_SUFFIX for name in HOST_KEY_ALGORITHMS),
    *HOST_KEY_ALGORITHMS,
)


class _GiveUp(Exception):
    """The person, or whoever stands for one, does not answer."""


def authenticate(
    transport: paramiko.Transport, config: HostConfig, options: Options
) -> None:
    """Log in on a transport whose host key has been checked.

    Blocks, and calls the callbacks of `options` on this thread. Raises
    `AuthenticationFailed` and `HostUnreachable`.
    """
    attempt = _Login(transport, config, options)
    try:
        attempt.run()
    except Disconnected as error:
        raise attempt.cut_off(str(error)) from error
    finally:
        attempt.identities.close()


class _Login:
    def __init__(
        self, transport: paramiko.Transport, config: HostConfig, options: Options
    ) -> None:
        self.config = config
        self.requests = UserAuth(transport, config.user)
        # BatchMode: what is given may be used, but nobody is asked.
        asking = not config.batch_mode
        self.password = (
            options.password if asking or isinstance(options.password, str) else None
        )
        self.interactive = options.interactive if asking else None
        passphrase = options.passphrase
        self.identities = Identities(
            config, passphrase if asking or isinstance(passphrase, str) else None
        )
        extensions = getattr(transport, "server_extensions", {})
        self.server_algorithms = tuple(
            bytes(extensions.get("server-sig-algs", b"")).decode("ascii", "replace")
            .split(",")
        )  # fmt: skip
        if self.server_algorithms == ("",):
            self.server_algorithms = ()
        self.tried: list[str] = []
        self.methods: tuple[str, ...] = ()

    def run(self) -> None:
        self.requests.begin()
        answer = self.requests.none()
        tries: dict[str, Iterator[Answer]] = {
            "publickey": self._publickey(),
            **self._of_persons(),
        }
        while not answer.success:
            self.methods = answer.methods
            if answer.partial:
                self.tried[-1] += ", which the server accepted and wants more"
                tries.update(self._of_persons())
            said = self._next(tries)
            if said is None:
                raise self._failure()
            answer = said
        log.info(
            "logged in to %s with %s",
            self.config,
            self.tried[-1] if self.tried else "nothing: it asks nobody",
        )

    def _next(self, tries: dict[str, Iterator[Answer]]) -> Answer | None:
        for method in self.config.auth_methods:
            if method in self.methods and method in tries:
                answer = next(tries[method], None)
                if answer is not None:
                    return answer
                del tries[method]
        return None

    def _of_persons(self) -> dict[str, Iterator[Answer]]:
        return {
            "keyboard-interactive": self._keyboard_interactive(),
            "password": self._password(),
        }

    # One generator per method: each step is one request that the server answered.

    def _publickey(self) -> Iterator[Answer]:
        for identity in self.identities.find():
            try:
                answer = self._offer(identity)
            except CannotSign as error:
                self.identities.notes.append(f"{identity}: {error}")
                continue
            yield answer

    def _offer(self, identity: Identity) -> Answer:
        if identity.blob is None:
            assert identity.unlock is not None
            identity.blob = identity.unlock()
        blob = identity.blob
        allowed = self.config.pubkey_algorithms
        algorithms = signature_algorithm(
            blob,
            self.server_algorithms,
            choose(
                "PubkeyAcceptedAlgorithms",
                allowed,
                PUBKEY_ALGORITHMS,
                PUBKEY_ALGORITHMS,
            ),
        )
        if algorithms is None:
            raise CannotSign("the server takes no kind of signature that it can make")
        named, signing = algorithms
        self.tried.append(f"publickey {identity}")
        if identity.asks:
            refusal = self.requests.would_accept(named, blob)
            if refusal is not None:
                return refusal
        try:
            return self.requests.publickey(
                named, blob, lambda data: identity.sign(data, signing)
            )
        except CannotSign:
            self.tried.pop()  # it was not shown, after all
            raise

    def _password(self) -> Iterator[Answer]:
        for password in self._passwords(f"{self.config.user}@{self.config.host}'s "):
            self.tried.append("password")
            yield self.requests.password(password)

    def _passwords(self, whose: str) -> Iterator[str]:
        if isinstance(self.password, str):
            yield self.password
        elif self.password is not None:
            for _ in range(self.config.password_prompts):
                text = self.password(f"{whose}password: ")
                if text is None:
                    return
                yield text

    def _keyboard_interactive(self) -> Iterator[Answer]:
        for respond in self._responders():
            self.tried.append("keyboard-interactive")
            try:
                answer = self.requests.keyboard_interactive(respond)
            except _GiveUp as error:
                # A request may be abandoned by making another (RFC 4252, 5.1).
                self.tried.pop()
                self.identities.notes.append(f"keyboard-interactive: {error}")
                return
            yield answer

    def _responders(
        self,
    ) -> Iterator[Callable[[str, str, tuple[tuple[str, bool], ...]], Sequence[str]]]:
        config = self.config
        if self.interactive is not None:
            interactive = self.interactive
            for _ in range(config.password_prompts):
                yield lambda title, instructions, prompts: interactive(
                    InteractiveQuestion(
                        config.user, config.host, title, instructions, prompts
                    )
                )
            return
        # Many servers ask for the password this way. It is given once, to the only
        # question, and only if what is typed there would not be shown.
        for password in self._passwords(f"{config.user}@{config.host}'s "):
            left = [password]

            def respond(
                title: str,
                instructions: str,
                prompts: tuple[tuple[str, bool], ...],
                left: list[str] = left,
            ) -> Sequence[str]:
                if not prompts:
                    return []
                if len(prompts) > 1 or prompts[0][1] or not left:
                    raise _GiveUp("the server asks for more than a password")
                return [left.pop()]

            yield respond

    # What to say.

    def _failure(self) -> AuthenticationFailed:
        return AuthenticationFailed(f"{self._summary()}. {self._advice()}")

    def cut_off(self, why: str) -> AuthenticationFailed | HostUnreachable:
        if not self.tried:
            return HostUnreachable(
                f"{self.config}: {why} before anything was tried; its log says why"
            )
        return AuthenticationFailed(
            f"{self._summary()}; then {why}. Servers allow few attempts "
            "(MaxAuthTries): name the right key (-i, identity_files) and set "
            "IdentitiesOnly=yes"
        )

    def _summary(self) -> str:
        parts = [f"{self.config} did not let us in"]
        parts.append(f"tried: {'; '.join(self.tried) or 'nothing'}")
        if self.identities.notes:
            parts.append(f"not used: {'; '.join(self.identities.notes)}")
        parts.append(f"the server accepts: {', '.join(self.methods) or 'nothing'}")
        return ". ".join(part[0].upper() + part[1:] if i else part
                         for i, part in enumerate(parts))  # fmt: skip

    def _advice(self) -> str:
        usable = [m for m in self.config.auth_methods if m in self.methods]
        if not usable:
            return (
                "None of these is in use here: see PreferredAuthentications, "
                "PubkeyAuthentication and PasswordAuthentication"
            )
        advice = []
        if "publickey" in usable:
            advice.append(
                "check the user name, and that the public key is in the server's "
                "authorized_keys"
                if any(text.startswith("publickey") for text in self.tried)
                else "name a key file (-i, identity_files), or add a key to the agent "
                "(ssh-add)"
            )
        if {"password", "keyboard-interactive"} & set(usable) and not self.password:
            advice.append("give a password")
        text = "; or ".join(advice) or "Check user name and password"
        return text[0].upper() + text[1:]
