"""What a session broker answers: any bytes are an answer, or one of two errors.

What comes out is safe to go on with, and reads the same when it is written and read
again.
"""

from __future__ import annotations

import string

from tests.fuzz.harness import fuzz, watched

with watched():
    from x2go_session.broker import json_text, plain
    from x2go_session.broker.answers import (
        HIGHEST_PORT,
        MOST_AUTHID_CHARS,
        MOST_KEY_CHARS,
        Answer,
        decoded,
    )
    from x2go_session.broker.requests import Task
    from x2go_session.errors import BrokerAnswerError, BrokerDenied

HOST = set(string.ascii_letters + string.digits + "_.:%-")
ANSWER_ERRORS = (BrokerAnswerError, BrokerDenied)


def check(answer: Answer) -> None:
    """An answer that was believed."""
    if answer.authid is not None:
        assert 1 <= len(answer.authid) <= MOST_AUTHID_CHARS
        assert answer.authid.isascii()
        assert answer.authid.isprintable()
        assert " " not in answer.authid
    for name in answer.profiles or {}:
        assert name
        assert "\n" not in name
    selected = answer.selected
    if selected is None:
        return
    assert selected.server
    assert set(selected.server) <= HOST
    assert not selected.server.startswith("-")
    assert selected.port is None or 1 <= selected.port <= HIGHEST_PORT
    if selected.private_key is not None:
        assert len(selected.private_key) <= MOST_KEY_CHARS + 1
        assert selected.private_key.startswith("-----BEGIN ")
        assert selected.private_key.endswith(" PRIVATE KEY-----\n")
    assert selected.session_info is None or selected.session is not None
    assert "PRIVATE KEY" not in repr(answer)


def test(data: bytes) -> None:
    """Read the bytes as the answer to every task, in either form."""
    try:
        text = decoded(data)
    except BrokerAnswerError:
        return
    for task in Task:
        try:
            answer = json_text.parse_answer(text, task)
        except ANSWER_ERRORS:
            pass
        else:
            check(answer)
            if task is not Task.TEST_CONNECTION:
                again = json_text.format_answer(answer, task)
                assert json_text.parse_answer(again, task) == answer
        try:
            answer = plain.parse_answer(text, task)
        except ANSWER_ERRORS:
            continue
        check(answer)
        if task is Task.SELECT_SESSION:
            again = plain.format_answer(answer)
            assert plain.parse_answer(again, task) == answer


if __name__ == "__main__":
    fuzz(test)
