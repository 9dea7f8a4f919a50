"""The authentication protocol holds against servers that break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from paramiko import Message

from rtunnel.errors import AuthenticationFailed
from rtunnel.ssh.userauth import Answer, Disconnected, UserAuth, printable


class ScriptedTransport:
    """Answers each request with the messages that the script has for it."""

    session_id = b"session"

    def __init__(self, *script: Callable[[Any], None]) -> None:
        self.script = list(script)
        self.sent: list[Message] = []
        self.auth_handler: Any = None
        self.triggered = False

    def _send_user_message(self, message: Message) -> None:
        self.sent.append(message)
        self.script.pop(0)(self.auth_handler)

    def _auth_trigger(self) -> None:
        self.triggered = True


def says(kind: int, *fields: bytes | int | bool) -> Callable[[Any], None]:
    message = Message()
    for field in fields:
        if isinstance(field, bool):
            message.add_boolean(field)
        elif isinstance(field, int):
            message.add_int(field)
        else:
            message.add_string(field)
    return lambda handler: handler._handler_table[kind](Message(message.asbytes()))


def nothing(handler: Any) -> None:
    """The server does not answer."""


accepted = says(6, b"ssh-userauth")
success = says(52)
refused = says(51, b"publickey,password", False)


def begun(*script: Callable[[Any], None]) -> tuple[UserAuth, ScriptedTransport]:
    transport = ScriptedTransport(accepted, *script)
    auth = UserAuth(transport, "me", timeout_s=0.05)  # type: ignore[arg-type]
    auth.begin()
    return auth, transport


def test_a_refusal_lists_the_methods() -> None:
    auth, _ = begun(refused)
    assert auth.none() == Answer(False, False, ("publickey", "password"))


def test_a_partial_success_says_so() -> None:
    auth, _ = begun(says(51, b"password", True))
    assert auth.none() == Answer(False, True, ("password",))


def test_success_reaches_the_transport_before_the_caller() -> None:
    auth, transport = begun(success)
    assert auth.password("secret").success
    assert transport.triggered
    assert transport.auth_handler.is_authenticated()


def test_a_banner_may_come_at_any_time() -> None:
    def banner_then_refusal(handler: Any) -> None:
        says(53, b"Hello\x1b[2J", b"")(handler)
        refused(handler)

    auth, transport = begun(banner_then_refusal)
    assert not auth.none().success
    assert transport.auth_handler.banner == b"Hello\x1b[2J"
    assert printable(b"Hello\x1b[2J\n") == "Hello\ufffd[2J\n"


def test_what_is_signed_is_the_session_and_the_request() -> None:
    auth, transport = begun(success)
    signed: list[bytes] = []

    def sign(data: bytes) -> bytes:
        signed.append(data)
        return b"signature"

    auth.publickey("ssh-ed25519", b"blob", sign)
    request = Message(signed[0])
    assert request.get_string() == b"session"
    assert transport.sent[-1].asbytes().startswith(request.get_remainder())


def test_a_key_that_would_do_is_told_from_one_that_would_not() -> None:
    auth, _ = begun(says(60, b"ssh-ed25519", b"blob"), refused)
    assert auth.would_accept("ssh-ed25519", b"blob") is None
    assert auth.would_accept("ssh-ed25519", b"blob") is not None


def test_a_server_that_likes_another_key_than_was_offered_is_not_believed() -> None:
    auth, _ = begun(says(60, b"ssh-ed25519", b"other"))
    with pytest.raises(AuthenticationFailed, match="not offered"):
        auth.would_accept("ssh-ed25519", b"blob")


def test_an_expired_password_is_reported() -> None:
    auth, _ = begun(says(60, b"Change it", b""))
    with pytest.raises(AuthenticationFailed, match="expired"):
        auth.password("secret")


@pytest.mark.parametrize("kind", [6, 60])
def test_a_message_out_of_turn_ends_the_login(kind: int) -> None:
    auth, _ = begun(says(kind, b"x"))
    with pytest.raises(AuthenticationFailed, match=f"message {kind} out of turn"):
        auth.none()


def test_a_server_that_does_not_answer_is_given_up() -> None:
    auth, _ = begun(nothing)
    with pytest.raises(AuthenticationFailed, match="did not answer"):
        auth.none()


def test_every_request_after_the_end_of_the_connection_says_so() -> None:
    auth, _ = begun(lambda handler: handler.abort(), nothing)
    for _ in range(2):
        with pytest.raises(Disconnected):
            auth.none()


def question(*prompts: bytes) -> Callable[[Any], None]:
    fields = [field for prompt in prompts for field in (prompt, True)]
    return says(60, b"title", b"instructions", b"", len(prompts), *fields)


def test_questions_come_in_rounds() -> None:
    auth, transport = begun(question(b"a", b"b"), question(), success)
    asked: list[int] = []

    def answer(title: str, instructions: str, prompts: tuple[Any, ...]) -> list[str]:
        asked.append(len(prompts))
        return ["x"] * len(prompts)

    assert auth.keyboard_interactive(answer).success
    assert asked == [2, 0]
    response = Message(transport.sent[-2].asbytes()[1:])
    assert (response.get_int(), response.get_text()) == (2, "x")


def test_too_few_answers_are_not_sent() -> None:
    auth, transport = begun(question(b"a"))
    with pytest.raises(AuthenticationFailed, match="1 questions and 0 answers"):
        auth.keyboard_interactive(lambda *_: [])
    assert len(transport.sent) == 2


def test_a_flood_of_questions_is_refused() -> None:
    auth, _ = begun(says(60, b"", b"", b"", 1 << 30))
    with pytest.raises(AuthenticationFailed, match="questions at once"):
        auth.keyboard_interactive(lambda *_: [])
