"""The stream of events: in order, to all, and questions that are answered or not."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

import rtunnel
from rtunnel.errors import HostKeyUnknown
from tests.support.x2go import X2goServer
from x2go_session.events import (
    Event,
    Events,
    HostKeyQuestion,
    PrintQuestion,
    Progress,
    SaveAsQuestion,
    host_key_prompt,
)

STEP = Progress(percent=1, step="one")


def test_every_subscriber_is_told_until_it_leaves() -> None:
    stream, first, second = Events(), list[Event](), list[Event]()
    leave = stream.subscribe(first.append)
    stream.subscribe(second.append)
    stream.emit(STEP)
    leave()
    leave()
    stream.emit(STEP)
    assert (len(first), len(second)) == (1, 2)


def test_all_see_the_same_order_from_many_threads() -> None:
    stream, first, second = Events(), list[Event](), list[Event]()
    stream.subscribe(first.append)
    stream.subscribe(second.append)

    def tell(number: int) -> None:
        for percent in range(100):
            stream.emit(Progress(percent=percent, step=str(number)))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(first) == 400
    assert first == second


def test_a_subscriber_may_tell_something_itself() -> None:
    stream, told = Events(), list[Event]()
    stream.subscribe(told.append)
    stream.subscribe(
        lambda event: (
            stream.emit(PrintQuestion(file=Path(), title=""))
            if isinstance(event, Progress)
            else None
        )
    )
    stream.emit(STEP)
    assert [type(event) for event in told] == [Progress, PrintQuestion]


def test_a_subscriber_that_fails_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream, told = Events(), list[Event]()
    stream.subscribe(lambda event: 1 // 0)
    stream.subscribe(told.append)
    with caplog.at_level(logging.ERROR):
        stream.emit(STEP)
    assert told == [STEP]
    assert "a subscriber failed: kind=Progress" in caplog.text


def test_a_question_has_the_first_answer() -> None:
    stream = Events()

    def answer(event: Event) -> None:
        if isinstance(event, SaveAsQuestion):
            threading.Thread(target=event.answer, args=(Path("first"),)).start()

    stream.subscribe(answer)
    question = SaveAsQuestion(file=Path("file"))
    assert stream.ask(question, None) == Path("first")


def test_a_question_that_nobody_answers_has_its_default() -> None:
    stream = Events()
    question = SaveAsQuestion(file=Path("file"), timeout_s=0.01)
    assert stream.ask(question, Path("default")) == Path("default")
    stream.subscribe(lambda event: None)
    assert stream.ask(question, Path("default")) == Path("default")


@pytest.mark.parametrize("is_right", [True, False])
def test_an_unknown_host_key_is_asked_about(
    x2go_server: X2goServer, tmp_path: Path, is_right: bool
) -> None:
    stream, asked = Events(), list[HostKeyQuestion]()

    def answer(event: Event) -> None:
        if isinstance(event, HostKeyQuestion):
            asked.append(event)
            event.answer(is_right)

    stream.subscribe(answer)
    options = {
        "known_hosts": str(tmp_path / "known_hosts"),
        "host_key_policy": "ask",
        "host_key_prompt": host_key_prompt(stream),
    }
    if is_right:
        x2go_server.connect(**options).close()
    else:
        with pytest.raises(HostKeyUnknown):
            rtunnel.connect(
                x2go_server.destination, **{**x2go_server.options, **options}
            )
    assert asked[0].fingerprint.startswith("SHA256:")
