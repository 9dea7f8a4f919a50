"""One X2Go session from start to end: agent there, windows here, services, command.

    terminal = Terminal(control, options, services=[...])
    terminal.start()
    terminal.wait()

Order matters. The agent waits 60 s for its nxproxy; nothing is run before it says
RUNNING; our forwards are cancelled before a session is suspended, since the server
gives a session other ports on resume when the old ones are taken; a session that is
starting, suspending or resuming is not terminated before it has done so, or its agent
survives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from rtunnel.errors import RTunnelError
from x2go_session import agent, commands, events
from x2go_session.control import Control
from x2go_session.errors import (
    AccessDenied,
    ControlError,
    GraphicsError,
    NoSuchCommand,
    NoSuchSession,
    X2GoError,
)
from x2go_session.graphics import Graphics, check_client, screen_size
from x2go_session.options import SessionOptions
from x2go_session.replies import SessionInfo, StartedAgent
from x2go_session.services import Service, Services
from x2go_session.session import Session, SessionType
from x2go_session.states import OVER, Life, State

log = logging.getLogger("x2go_session.terminal")

SESSIONS_ROOT: Final = "~/.x2go"
# The agent gives up after 60 s without its nxproxy; so may we.
RUNNING_TIMEOUT_S: Final = 75.0
# From the end of nxproxy until the server lists what became of the session: the agent
# needs 4 s to notice, and as long again to suspend.
FATE_TIMEOUT_S: Final = 20.0
# An agent that has only just suspended may turn its nxproxy away, and suspends again.
RESUME_ATTEMPTS: Final = 3
PROXY_TIMEOUT_S: Final = 10.0
PAUSE_S: Final = 0.3
NO_EXEC: Final = "X2GORUNCOMMAND ERR NOEXEC:"


class Terminal:
    """One terminal session. Any thread; each call blocks until it is done.

    `services` are started and stopped with it. `sessions_root` is where the folder of
    the session (S-<name>) is made on this side, with nxproxy's log; it goes with the
    session. Calls raise `X2GoError` and `RTunnelError`; what happens by itself is told
    by `events`.
    """

    def __init__(
        self,
        control: Control,
        options: SessionOptions,
        *,
        services: Iterable[Service] = (),
        stream: events.Events | None = None,
        sessions_root: Path | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.options = options
        self.events = stream or events.Events()
        self.services = Services(services, self.events)
        self._control = control
        self._root = sessions_root or Path(SESSIONS_ROOT).expanduser()
        self._environment = environment
        self._life = Life()
        # Held by whoever changes something, for as long as that takes.
        self._operation = threading.RLock()
        self._session: Session | None = None
        self._graphics: Graphics | None = None
        self._watcher: threading.Thread | None = None

    @classmethod
    def of_listed(
        cls,
        control: Control,
        info: SessionInfo,
        options: SessionOptions,
        **more: object,
    ) -> Terminal:
        """Return the terminal of a session that the server lists, to be resumed.

        `more` is as for `Terminal`. What runs elsewhere is suspended there by
        `resume`.
        """
        terminal = cls(control, options, **more)  # type: ignore[arg-type]
        terminal._life = Life(State.SUSPENDED)
        terminal._session = terminal._session_of(info)
        terminal._session.type = info.type
        return terminal

    @property
    def state(self) -> State:
        """Where the session is in its life."""
        return self._life.state

    @property
    def session(self) -> Session:
        """The session. Raises `NoSuchSession` before it was started."""
        if self._session is None:
            raise NoSuchSession("the session has not been started yet")
        return self._session

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the session is over; False after the time."""
        return self._life.wait(OVER, timeout_s)

    def wait_for(self, *states: State, timeout_s: float | None = None) -> bool:
        """Wait until the session is in one of these states; False after the time."""
        return self._life.wait(frozenset(states), timeout_s)

    # Starting.

    def start(self) -> Session:
        """Start the session, show its windows, start services, run its command.

        What was begun is ended again when a step fails; services that fail are events.
        """
        with self._operation:
            self._life.enter(State.STARTING)
            try:
                self._start()
            except BaseException as error:
                self._give_up(error)
                self._life.enter(State.FAILED)
                self.events.emit(
                    events.SessionFailed(session=self._name, reason=str(error))
                )
                raise
            self._life.enter(State.RUNNING)
            self._watch()
        self._tell_progress(100, "the session runs")
        self._announce(events.SessionStarted)
        return self.session

    def _start(self) -> None:
        self._tell_progress(1, "looking at this display")
        check_client(self._environment)
        self._fix_geometry()
        self._tell_progress(5, "asking the server what it can do")
        features = self._control.features()
        self._check_program()
        self._tell_progress(20, "starting the agent")
        self._start_agent()
        self._show()
        self._tell_progress(50, "starting services")
        self.services.start(self.session)
        self._tell_progress(80, "running the command")
        line = commands.run_command(
            self.session, self.options, self.services.environment, features
        )
        if line is not None:
            self._control.run(line)
        self._set_keyboard()

    def _start_agent(self) -> None:
        """Start it on the server; note the session before anything else may happen.

        On a thread, which nobody interrupts: whoever is told to end meanwhile waits for
        it, and then knows what has begun over there.
        """

        def start() -> None:
            self._session = self._session_of(self._control.start_agent(self.options))

        try:
            with ThreadPoolExecutor(1, "x2go-start") as pool:
                pool.submit(start).result()
        except AccessDenied:
            denied = events.DesktopSharingDenied(desktop=self.options.desktop)
            self.events.emit(denied)
            raise

    def _check_program(self) -> None:
        if self.options.type not in (SessionType.DESKTOP, SessionType.ROOTLESS):
            return
        self._tell_progress(10, "looking for the program")
        if not self._control.has_program(self.options.command):
            name = commands.program(self.options.command)
            self.events.emit(events.CommandMissing(command=name))
            raise NoSuchCommand(
                f"the server has no program {name!r}: install it there, or name another"
            )

    def _show(self) -> None:
        """Bring the windows here, and wait until the agent says that it runs."""
        session = self.session
        self._tell_progress(30, "showing the session's windows")
        session.local_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._graphics = Graphics(
            session, self._root, self._graphics_failed, self._environment
        )
        self._tell_progress(40, "waiting for the agent")
        deadline = time.monotonic() + RUNNING_TIMEOUT_S
        name, running = session.name, (agent.RUNNING,)
        while (state := self._control.wait_state(name, running, 2.0)) not in running:
            if not self._graphics.proxy.is_running:
                words = self._graphics.proxy.last_words()
                raise GraphicsError(f"nxproxy ended before the session ran: {words}")
            if time.monotonic() > deadline:
                raise GraphicsError(
                    f"the agent is {state or 'gone'} still, after "
                    f"{RUNNING_TIMEOUT_S:.0f} s"
                )

    def _give_up(self, error: BaseException) -> None:
        """Leave nothing behind of a session that did not come up."""
        log.warning("session failed: name=%s error=%s", self._name, error)
        self._tell_progress(-1, str(error))
        self.services.stop()
        self._hide()
        if self._session is not None:
            with contextlib.suppress(X2GoError, RTunnelError):
                agent.end(self._control, self._session)
            shutil.rmtree(self._session.local_folder, ignore_errors=True)

    # Suspending and resuming.

    def suspend(self) -> None:
        """Suspend the session: it waits on the server, without windows here."""
        with self._operation:
            self._life.enter(State.SUSPENDING)
            session = self.session
            self.services.stop()
            try:
                self._control.suspend_session(session.name)
                state = agent.settle(
                    self._control, session, (agent.SUSPENDED, *agent.OVER)
                )
            except NoSuchSession:
                self._ended(by_us=False)
                raise
            except (X2GoError, RTunnelError) as error:
                self._lose(error)
                raise
            if state != agent.SUSPENDED:
                self._ended(by_us=False)
                raise NoSuchSession(f"{session.name} ended instead of being suspended")
            self._hide(PROXY_TIMEOUT_S)
            self._life.enter(State.SUSPENDED)
        self.events.emit(events.SessionSuspended(session=session.name, by_us=True))

    def resume(self) -> Session:
        """Resume the session: its windows come here, services start anew."""
        with self._operation:
            self._life.enter(State.RESUMING)
            session = self.session
            try:
                self._resume()
            except NoSuchSession:
                self._ended(by_us=False)
                raise
            except BaseException as error:
                self._resume_failed(error)
                raise
            self._life.enter(State.RUNNING)
            self._watch()
        self._tell_progress(100, "the session runs")
        self._announce(events.SessionResumed)
        return session

    def _resume(self) -> None:
        session = self.session
        check_client(self._environment)
        self._fix_geometry()
        self._tell_progress(15, "waiting until it can be resumed")
        agent.settle(self._control, session)
        if not self._control.has_agent(session.name, session.agent_pid):
            raise NoSuchSession(f"{session.name} is over: its agent is gone")
        self._tell_progress(20, "resuming")
        for attempt in range(1, RESUME_ATTEMPTS + 1):
            ports = self._control.resume_session(session.name, self.options)
            session.use_ports(ports.graphics, ports.sound, ports.sharing)
            try:
                self._show()
            except GraphicsError as error:
                if attempt == RESUME_ATTEMPTS:
                    raise
                log.info("again: name=%s error=%s", session.name, error)
                self._hide()
                agent.settle(self._control, session)
            else:
                break
        self._tell_progress(50, "starting services")
        self.services.start(session)
        self._set_keyboard()

    def _resume_failed(self, error: BaseException) -> None:
        """Leave the session as it was: waiting over there."""
        self._tell_progress(-1, str(error))
        self.services.stop()
        self._hide()
        alive = self._control.is_alive
        if alive:
            with contextlib.suppress(X2GoError, RTunnelError):
                self._control.suspend_session(self._name)
        self._life.enter(State.SUSPENDED if alive else State.LOST)
        self.events.emit(events.SessionFailed(session=self._name, reason=str(error)))

    def use(self, control: Control) -> None:
        """Go on over another connection, after the first was lost. Then `resume`."""
        with self._operation:
            self._control = control
            if self._session is not None:
                self._session.control = control

    # The end.

    def terminate(self) -> None:
        """End the session, on the server and here; its command is ended, too."""
        with self._operation:
            self._life.enter(State.TERMINATING)
            session = self.session
            self.services.stop()
            try:
                agent.end(self._control, session)
            except (X2GoError, RTunnelError) as error:
                self._lose(error)
                raise
            self._hide(PROXY_TIMEOUT_S)
            self._ended(by_us=True)

    def run_published(self, exec_line: str) -> None:
        """Start an application in a PUBLISHED session: the command of an `Application`.

        It is a command line for sh(1) on the server, as the server itself published
        it.
        """
        environment = self.services.environment
        self._control.run(commands.run_published(self.session, exec_line, environment))

    # What happens by itself.

    def _watch(self) -> None:
        graphics = self._graphics
        assert graphics is not None
        self._watcher = threading.Thread(
            target=self._watch_proxy,
            args=(graphics,),
            name=f"x2go-watch-{self.session.display}",
            daemon=True,
        )
        self._watcher.start()

    def _watch_proxy(self, graphics: Graphics) -> None:
        """Find out why nxproxy ended, if it was not on our behalf."""
        graphics.proxy.wait()
        with self._operation:
            if self.state is not State.RUNNING or self._graphics is not graphics:
                return
            self.services.stop()
            self._hide()
            try:
                self._find_fate()
            except (X2GoError, RTunnelError) as error:
                self._lose(error)

    def _find_fate(self) -> None:
        name, pid = self._name, self.session.agent_pid
        deadline = time.monotonic() + FATE_TIMEOUT_S
        # The agent notices by itself that its nxproxy is gone, and suspends.
        while True:
            info = self._control.find_session(name)
            # The list goes on with an agent that died.
            if info is None or not self._control.has_agent(name, pid):
                self._ended(by_us=False)
                return
            if info.is_suspended:
                self._life.enter(State.SUSPENDED)
                self.events.emit(events.SessionSuspended(session=name, by_us=False))
                return
            late_s = time.monotonic() - deadline
            if late_s > 0 and self._control.state(name) == agent.RUNNING:
                # Not for us, then.
                self._life.enter(State.SUSPENDED)
                self.events.emit(events.SessionTakenOver(session=name))
                return
            if late_s > agent.SETTLE_TIMEOUT_S:
                raise ControlError(f"nobody knows what became of {name}")
            time.sleep(PAUSE_S)

    def _lose(self, error: Exception) -> None:
        self._hide()
        self._life.enter(State.LOST)
        self.events.emit(events.ConnectionDied(session=self._name, reason=str(error)))

    def _ended(self, *, by_us: bool) -> None:
        """The session is over."""
        session = self.session
        message = ""
        self.services.stop()
        self._hide()
        if not by_us:
            with contextlib.suppress(X2GoError, RTunnelError):
                message = self._control.exit_message(session.name).strip()
                # Rows of agents that aborted stay otherwise, and their folders.
                self._control.terminate_session(session.name)
                self._control.remove_folder(session.name)
        shutil.rmtree(session.local_folder, ignore_errors=True)
        self._life.enter(State.TERMINATED)
        if message.startswith(NO_EXEC):
            command = message.removeprefix(NO_EXEC)
            self.events.emit(
                events.CommandMissing(session=session.name, command=command)
            )
        self.events.emit(
            events.SessionTerminated(session=session.name, by_us=by_us, message=message)
        )

    # Small parts.

    @property
    def _name(self) -> str:
        return self._session.name if self._session else ""

    def _hide(self, timeout_s: float = 0.0) -> None:
        graphics, self._graphics = self._graphics, None
        if graphics is not None:
            graphics.wait_ended(timeout_s)
            graphics.stop()

    def _set_keyboard(self) -> None:
        line = commands.set_keyboard(self.session, self.options)
        if line is None:
            return
        result = self._control.run(line)
        if result.status != 0:
            log.warning("the keyboard was not set: %s", result.words_of_failure)

    def _fix_geometry(self) -> None:
        if self.options.geometry == "maximize":
            size = screen_size(self._environment)
            self.options = dataclasses.replace(self.options, geometry=size)

    def _session_of(self, found: StartedAgent | SessionInfo) -> Session:
        return Session(
            name=found.name,
            type=self.options.type,
            command=self.options.command,
            display=found.display,
            cookie=found.cookie,
            agent_pid=found.agent_pid,
            ports=found.ports,
            control=self._control,
            events=self.events,
            local_folder=self._root / f"S-{found.name}",
            remote_folder=self._control.session_folder(found.name),
        )

    def _tell_progress(self, percent: int, step: str) -> None:
        self.events.emit(
            events.Progress(session=self._name, percent=percent, step=step)
        )

    def _graphics_failed(self, reason: str) -> None:
        """A connection of nxproxy could not be taken to the agent."""
        session = self.session
        self.events.emit(
            events.GraphicsFailed(
                session=session.name,
                host="127.0.0.1",
                port=session.ports.graphics,
                subsystem="Terminal NX Proxy",
                reason=reason,
            )
        )

    def _announce(self, kind: type[events.SessionStarted]) -> None:
        session = self.session
        self.events.emit(
            kind(
                session=session.name,
                display=session.display,
                ports=dataclasses.asdict(session.ports),
            )
        )
