"""A connection in any order of events; `python` is the oracle of the other backends.

Each rule happens to three connections, one of each backend. Whatever follows from it,
to the peer and to the targets, has to become the same for all of them. In the end the
connections are lost, and everybody who lost something by it has to be told.

The same few connections each time; to look at many others:

    EXAMPLES=300 pytest tests/test_connection_machine.py
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rtunnel.errors import OpenFailureCode
from rtunnel.ssh import seams
from rtunnel.wire import boolean, string, u32
from tests.support.peer import TIMEOUT_S
from tests.support.sshd import wait_until
from tests.support.tunnels import BACKENDS
from tests.support.worlds import STREAM, Visit, World

LISTENED, CANCELLED, NEVER = 8080, 8081, 8082
PORTS = st.sampled_from([LISTENED, LISTENED, LISTENED, CANCELLED, NEVER])
SIZES = st.sampled_from([1, 2, 100, 5000, 32768])
MOST_VISITS = 5
# Far below the window: credit is given in portions, and at other times by each backend.
MOST_UNREAD = 1 << 20
# What a local socket holds if nobody reads it.
MOST_UNHEARD = 100_000
EXAMPLES = os.environ.get("EXAMPLES")
# What is asked for may take as long as it takes.
pytestmark = [pytest.mark.timeout(0)] if EXAMPLES else []


class Model:
    """What the peer and the target of a channel have said: the same in each world."""

    def __init__(self) -> None:
        self.said = self.written = 0
        self.said_eof = self.said_close = False
        self.target_ended = self.was_reset = False
        self.reading = True


class ConnectionMachine(RuleBasedStateMachine):
    """Three connections that live through the same."""

    worlds: list[World]

    @initialize()
    def connect(self) -> None:
        self.worlds = [World(backend) for backend in ("python", "pump", "engine")]
        assert {world.backend for world in self.worlds} == set(BACKENDS)
        self.models: list[Model] = []
        self.asked = 0
        self.cancelled = self.paused = False
        self.settled = False
        for port in (LISTENED, CANCELLED):
            self.each(lambda world, port=port: world.listen(port))  # type: ignore[misc]
            self.each(lambda world: world.answer(True))

    def teardown(self) -> None:
        try:
            if getattr(self, "settled", False):
                self.lose()
        finally:
            for world in getattr(self, "worlds", []):
                world.close()

    def lose(self) -> None:
        """Lose the connections. An end that says nothing of a loss has none."""
        for which in self.live():
            self.read_on(which, True)
        self.agree()
        self.check()
        self.each(World.lose)
        wait_until(self.is_told_of_all, TIMEOUT_S)
        wait_until(self.is_one_view, TIMEOUT_S)
        for world in self.worlds:
            for which in self.live():
                visit, model = world.visits[which], self.models[which]
                (end,) = visit.ends
                if end.reason != "closed":
                    continue
                assert visit.got == STREAM[: model.said]
                assert end.bytes_in == model.said
                if visit.heard_end == "EOF CLOSE":
                    assert visit.heard == STREAM[: model.written]
                    assert end.bytes_out == model.written

    def is_told_of_all(self) -> bool:
        return all(
            world.visits[which].ends for world in self.worlds for which in self.live()
        )

    def each(self, act: Callable[[World], object]) -> None:
        self.settled = False
        for world in self.worlds:
            act(world)

    def agree(self) -> None:
        """All that was said is through; then all worlds come to look the same."""
        self.each(World.barrier)
        wait_until(self.is_one_view, TIMEOUT_S)

    def is_one_view(self) -> bool:
        oracle, *others = [world.view() for world in self.worlds]
        return all(view == oracle for view in others)

    # Whose turn it is.

    def live(self) -> list[int]:
        return [
            index
            for index, visit in enumerate(self.worlds[0].visits)
            if visit.local_id >= 0
        ]

    def on_visit(self, which: int, act: Callable[[World, Visit], object]) -> None:
        self.settled = False
        for world in self.worlds:
            act(world, world.visits[which])

    def say(self, which: int, kind: int, fields: bytes = b"") -> None:
        self.on_visit(which, lambda world, visit: world.say(kind, visit, fields))

    def choose(self, data: st.DataObject) -> tuple[int, Model]:
        which = data.draw(st.sampled_from(self.live()))
        return which, self.models[which]

    # Opens.

    @rule(
        port=PORTS,
        window=st.sampled_from([0, 5, 3000, 1 << 21]),
        max_packet=st.sampled_from([1000, 32768]),
    )
    def open(self, port: int, window: int, max_packet: int) -> None:
        if len(self.models) == MOST_VISITS:
            return
        self.models.append(Model())
        self.each(lambda world: world.open(port, window, max_packet))
        refused = (
            port == NEVER
            or (port == CANCELLED and self.cancelled)
            or (port == LISTENED and self.paused)
        )
        code = OpenFailureCode.ADMINISTRATIVELY_PROHIBITED if refused else 0
        assert [w.visits[-1].refused for w in self.worlds] == [code] * 3

    @precondition(lambda self: self.live())
    @rule(data=st.data(), size=SIZES, extended=st.booleans())
    def say_data(self, data: st.DataObject, size: int, extended: bool) -> None:
        which, model = self.choose(data)
        unread = max(model.said - len(w.visits[which].got) for w in self.worlds)
        if unread + size > MOST_UNREAD:
            return
        if extended and not model.reading:
            return  # it is credited at once, and that the model does not know
        body = string(STREAM[model.said : model.said + size])
        if extended:
            self.say(which, seams.MSG_CHANNEL_EXTENDED_DATA, u32(1) + body)
        else:
            self.say(which, seams.MSG_CHANNEL_DATA, body)
        if not (extended or model.said_eof or model.said_close):
            model.said += size

    @precondition(lambda self: self.live())
    @rule(data=st.data(), size=st.sampled_from([0, 1, 1000, 1 << 20]))
    def adjust(self, data: st.DataObject, size: int) -> None:
        which, _ = self.choose(data)
        self.adjust_by(which, size)

    def adjust_by(self, which: int, size: int) -> None:
        def more(world: World, visit: Visit) -> None:
            visit.window += size

        self.on_visit(which, more)
        self.say(which, seams.MSG_CHANNEL_WINDOW_ADJUST, u32(size))

    @precondition(lambda self: self.live())
    @rule(data=st.data(), twice=st.booleans())
    def say_eof(self, data: st.DataObject, twice: bool) -> None:
        which, model = self.choose(data)
        model.said_eof = True
        for _ in range(1 + twice):
            self.say(which, seams.MSG_CHANNEL_EOF)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def say_close(self, data: st.DataObject) -> None:
        which, model = self.choose(data)
        if model.said_close and not model.was_reset:
            return
        model.said_close = True
        self.say(which, seams.MSG_CHANNEL_CLOSE)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), want_reply=st.booleans())
    def ask_on_channel(self, data: st.DataObject, want_reply: bool) -> None:
        which, model = self.choose(data)
        if not model.said_close:
            fields = string("signal") + boolean(want_reply)
            self.say(which, seams.MSG_CHANNEL_REQUEST, fields)
            self.agree()  # CLOSE of ours may overtake the answer, in any backend

    # Targets.

    @precondition(lambda self: self.live())
    @rule(data=st.data(), size=SIZES)
    def target_writes(self, data: st.DataObject, size: int) -> None:
        which, _ = self.choose(data)
        self.agree()
        self.write(which, size)

    def write(self, which: int, size: int) -> None:
        model = self.models[which]
        if model.target_ended or model.said_close or model.was_reset:
            return
        if model.written + size > MOST_UNHEARD:
            return
        body = STREAM[model.written : model.written + size]
        model.written += size

        def write(world: World, visit: Visit) -> None:
            visit.target.settimeout(TIMEOUT_S)
            visit.target.sendall(body)
            visit.target.setblocking(False)

        self.on_visit(which, write)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def target_ends(self, data: st.DataObject) -> None:
        which, model = self.choose(data)
        if model.target_ended:
            return
        self.agree()
        model.target_ended = True
        if not model.said_close and not model.was_reset:
            self.on_visit(which, lambda _, v: v.target.shutdown(socket.SHUT_WR))

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def target_is_slow_for_a_while(self, data: st.DataObject) -> None:
        which, model = self.choose(data)
        self.read_on(which, not model.reading)

    def read_on(self, which: int, reading: bool) -> None:
        self.models[which].reading = reading

        def turn(world: World, visit: Visit) -> None:
            visit.reading = reading

        self.on_visit(which, turn)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def we_reset_it(self, data: st.DataObject) -> None:
        which, model = self.choose(data)
        self.agree()
        model.was_reset = True

        def reset(_: World, visit: Visit) -> None:
            assert visit.relay is not None
            visit.relay.reset()

        self.on_visit(which, reset)

    # The connection as a whole.

    @precondition(lambda self: self.live())
    @rule(data=st.data(), sizes=st.lists(SIZES, min_size=1, max_size=3))
    def peer_is_slow_for_a_while(self, data: st.DataObject, sizes: list[int]) -> None:
        """It goes on to speak, but reads nothing."""
        self.agree()
        self.each(lambda world: world.ears.open.clear())
        for size in sizes:
            which, _ = self.choose(data)
            self.write(which, size)
            self.adjust_by(which, size)
        self.each(lambda world: world.ears.open.set())

    @rule()
    def pause_or_resume(self) -> None:
        self.agree()
        self.paused = not self.paused
        if not self.paused:
            self.each(lambda world: world.paused.clear())
            return
        for which in self.live():
            if self.worlds[0].visits[which].port == LISTENED:
                self.models[which].was_reset = True
        self.each(lambda world: world.pause(LISTENED))

    @rule(who=st.sampled_from(["peer", "client"]))
    def rekey(self, who: str) -> None:
        self.agree()
        for world in self.worlds:
            side = world.peer.transport if who == "peer" else world.peer.client
            side.renegotiate_keys()

    @precondition(lambda self: self.asked < 3)
    @rule()
    def we_ask(self) -> None:
        self.asked += 1
        self.each(World.request)

    @rule(granted=st.booleans())
    def peer_answers(self, granted: bool) -> None:
        """The oldest question, or nobody's: then it is dropped."""
        self.asked = max(0, self.asked - 1)
        self.each(lambda world: world.answer(granted))

    @precondition(lambda self: not self.cancelled and not self.asked)
    @rule()
    def cancel(self) -> None:
        self.cancelled = True
        self.each(lambda world: world.cancel(CANCELLED))
        self.each(lambda world: world.answer(True))

    @invariant()
    def all_look_the_same(self) -> None:
        if hasattr(self, "worlds"):
            self.agree()
            self.check()
            self.settled = True

    def check(self) -> None:
        """What holds for each world by itself."""
        for world in self.worlds:
            assert world.strange == []
            for visit, model in zip(world.visits, self.models, strict=True):
                assert visit.got == STREAM[: len(visit.got)]
                assert visit.heard == STREAM[: len(visit.heard)]
                assert len(visit.got) <= model.said
                assert len(visit.heard) <= model.written
                if model.reading and not model.was_reset and visit.local_id >= 0:
                    self.await_all(visit, model)

    def await_all(self, visit: Visit, model: Model) -> None:
        def has_all() -> bool:
            visit.read()
            return len(visit.got) == model.said

        wait_until(has_all, TIMEOUT_S)


ConnectionMachine.TestCase.settings = settings(
    max_examples=int(EXAMPLES or 15),
    stateful_step_count=30,
    derandomize=not EXAMPLES,
    # Shrinking takes minutes. The steps of the first failure are printed as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestConnection = ConnectionMachine.TestCase
