"""`X2GoClient`: python-x2go's client, in the place of its own."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final, Self

from x2go_session import events
from x2go_session.broker import open_broker
from x2go_session.client.applications import Applications
from x2go_session.client.caches import Caches
from x2go_session.client.dispatcher import Dispatcher
from x2go_session.client.exceptions import X2GoBackendException
from x2go_session.client.known import Known
from x2go_session.client.profiles import Profiles
from x2go_session.client.registering import Registering
from x2go_session.client.servers import Servers
from x2go_session.client.sharing import Sharing
from x2go_session.client.windows import Windows
from x2go_session.errors import NotSupported
from x2go_session.profiles import ClientSettings, PrintingFile, SessionProfiles
from x2go_session.registry import Refresher, RegisteredSession, Registry
from x2go_session.registry.brokered import BrokeredProfiles
from x2go_session.registry.refresher import Refreshing

CLIENT_FOLDER: Final = "~/.x2goclient"
SESSIONS_FOLDER: Final = "~/.x2go"
SSH_FOLDER: Final = "~/.ssh"
# python-x2go's own: errors, warnings, notices.
DEFAULT_LOGLEVEL: Final = 56
_LOGLEVELS: Final = ((128, logging.DEBUG), (32 | 64, logging.INFO),
                     (16, logging.WARNING), (8, logging.ERROR))  # fmt: skip
_BACKENDS: Final = {
    "control_backend": "PLAIN",
    "terminal_backend": "PLAIN",
    "info_backend": "PLAIN",
    "list_backend": "PLAIN",
    "proxy_backend": "NX3",
    "profiles_backend": "FILE",
    "settings_backend": "FILE",
    "printing_backend": "FILE",
}


class X2GoClient(
    Registering, Known, Servers, Sharing, Applications, Caches, Profiles, Windows
):
    """All X2Go sessions of a program, by python-x2go's names.

    Any thread; what asks a server blocks. HOOK methods are called on a thread of
    their own. `close`, or a `with` block, ends threads and connections; sessions go on,
    suspended.
    """

    def __init__(
        self,
        control_backend: str = "PLAIN",
        terminal_backend: str = "PLAIN",
        info_backend: str = "PLAIN",
        list_backend: str = "PLAIN",
        proxy_backend: str = "NX3",
        profiles_backend: str = "FILE",
        settings_backend: str = "FILE",
        printing_backend: str = "FILE",
        broker_url: str | None = None,
        broker_password: str | None = None,
        broker_noauth: bool = False,
        client_rootdir: str | None = None,
        sessions_rootdir: str | None = None,
        ssh_rootdir: str | None = None,
        start_xserver: bool = False,
        start_pulseaudio: bool = False,
        use_cache: bool = False,
        use_listsessions_cache: bool = False,
        auto_update_listsessions_cache: bool = False,
        auto_update_listdesktops_cache: bool = False,
        auto_update_listmounts_cache: bool = False,
        auto_update_sessionregistry: bool = False,
        auto_register_sessions: bool = False,
        no_auto_reg_pubapp_sessions: bool = False,
        refresh_interval: float = 5,
        pulseaudio_installdir: str = "pulseaudio",
        logger: logging.Logger | None = None,
        loglevel: int = DEFAULT_LOGLEVEL,
    ) -> None:
        given = locals()
        for name, known in _BACKENDS.items():
            if given[name] != known:
                raise X2GoBackendException(
                    f"{name} {given[name]!r}: there is {known} and no other"
                )
        if start_xserver or start_pulseaudio:
            raise NotSupported(
                "start_xserver and start_pulseaudio are for clients on Windows; here "
                "X server and PulseAudio are those that run"
            )
        self.logger = logger or logging.getLogger("x2go_session.client")
        if loglevel != DEFAULT_LOGLEVEL:
            self.logger.setLevel(_level(loglevel))
        self.has_custom_client_rootdir = client_rootdir is not None
        self.client_rootdir = _folder(client_rootdir, CLIENT_FOLDER)
        self.sessions_rootdir = _folder(sessions_rootdir, SESSIONS_FOLDER)
        self.ssh_rootdir = _folder(ssh_rootdir, SSH_FOLDER)
        self._brokered: BrokeredProfiles | None = None
        if broker_url is not None:
            password = None if broker_noauth else broker_password
            self._brokered = BrokeredProfiles(
                open_broker(broker_url, password=password)
            )
        self.session_profiles = self._brokered or SessionProfiles(self.client_rootdir)
        self.client_settings = ClientSettings(self.client_rootdir)
        self.client_printing = PrintingFile(self.client_rootdir)
        cached = use_cache or use_listsessions_cache
        self.refreshing = Refreshing(
            sessions=cached and auto_update_listsessions_cache,
            desktops=cached and auto_update_listdesktops_cache,
            mounts=cached and auto_update_listmounts_cache,
            update=auto_update_sessionregistry,
            adopt=auto_register_sessions,
            adopt_published=not no_auto_reg_pubapp_sessions,
        )
        self.dispatcher = Dispatcher(self)
        self.registry = Registry(
            self.sessions_rootdir,
            ssh_folder=self.ssh_rootdir if ssh_rootdir is not None else None,
            choose=self._brokered.chosen if self._brokered else None,
            default_action=lambda: self.client_printing.action,
            watch=self.dispatcher.watch,
        )
        self._refresher: Refresher | None = None
        if self.refreshing.is_needed:
            self._refresher = Refresher(
                self.registry, self.refreshing, refresh_interval, self._on_death
            )

    def close(self) -> None:
        """End connections, then the threads of this client. Blocks."""
        if self._refresher is not None:
            self._refresher.close()
        for connection in self.registry.connections().values():
            connection.disconnect()
        if self._brokered is not None:
            self._brokered.close()
        self.dispatcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_death(self, session: RegisteredSession, error: Exception) -> None:
        if not session.is_shown:  # its terminal tells by itself
            session.events.emit(
                events.ConnectionDied(session=session.name, reason=str(error))
            )


def _folder(given: str | None, usual: str) -> Path:
    """Return a folder; one that is relative is in the user's home, as there."""
    return Path.home() / os.path.expanduser(given or usual)


def _level(loglevel: int) -> int:
    """Return logging's level for python-x2go's bits."""
    return next(
        (level for bits, level in _LOGLEVELS if loglevel & bits), logging.CRITICAL
    )
