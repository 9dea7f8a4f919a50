"""Connecting to the servers of sessions."""

from __future__ import annotations

import logging

from rtunnel.errors import RTunnelError
from x2go_session import events
from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import translated
from x2go_session.client.lifecycle import Lifecycle
from x2go_session.errors import X2GoError
from x2go_session.registry import Login
from x2go_session.registry.connection import has_key
from x2go_session.registry.wish import wish_of

log = logging.getLogger("x2go_session.client")


class Connecting(Lifecycle, ClientBase):
    """Logs in and out."""

    @translated
    def connect_session(
        self,
        session_uuid: str,
        username: str | None = None,
        password: str | None = None,
        passphrase: str | None = None,
        sshproxy_user: str | None = None,
        sshproxy_password: str | None = None,
        sshproxy_passphrase: str | None = None,
        add_to_known_hosts: bool = False,
        force_password_auth: bool = False,
        sshproxy_force_password_auth: bool = False,
    ) -> bool:
        """Connect to the server of a session; True, also if it was connected.

        Raises `AuthenticationException`, `X2GoHostKeyException`,
        `X2GoControlSessionException`. Blocks.
        """
        session = self._session(session_uuid)
        if add_to_known_hosts:
            session.wish = wish_of(session.wish, {"add_to_known_hosts": True})
        is_new = session.connect(
            Login(
                user=username,
                password=password,
                passphrase=passphrase,
                proxy_user=sshproxy_user,
                proxy_password=sshproxy_password,
                proxy_passphrase=sshproxy_passphrase,
                keys_too=not force_password_auth,
                proxy_keys_too=not sshproxy_force_password_auth,
            )
        )
        if is_new:
            try:
                self.registry.update(session, at_first=True)
                if self.refreshing.adopt:
                    self.registry.adopt(
                        session,
                        with_published=self.refreshing.adopt_published,
                        at_first=True,
                    )
            except (X2GoError, RTunnelError) as error:
                log.warning("connected, but the server lists nothing: %s", error)
            if session.wish.profile.autostart:
                self.session_auto_start_or_resume(session_uuid)
        return True

    @translated
    def disconnect_session(self, session_uuid: str) -> bool:
        """Close the connection of a session, and of others of its profile."""
        session = self._session(session_uuid)
        was_connected = session.connection.is_connected
        session.connection.disconnect()
        return was_connected

    @translated
    def disconnect_profile(self, profile_name: str) -> bool:
        """Close the connection of a profile; False if there was none."""
        connected = self.registry.connected(profile_name)
        for session in connected:
            session.connection.disconnect()
        return bool(connected)

    @translated
    def check_session_host(self, session_uuid: str) -> bool:
        """Whether the server of a session has the right host key; may ask a HOOK."""
        return self._session(session_uuid).check_host()

    @translated
    def set_session_username(self, session_uuid: str, username: str) -> bool:
        """Log in as somebody else, the next time."""
        self._session(session_uuid).use_user(username)
        return True

    @translated
    def session_can_auto_connect(self, session_uuid: str) -> bool:
        """Whether a session has a key to log in with."""
        session = self._session(session_uuid)
        profile = session.wish.profile
        return session.connection.is_connected or has_key(
            profile.key, profile.autologin, self.ssh_rootdir
        )

    @translated
    def session_can_sshproxy_auto_connect(self, session_uuid: str) -> bool:
        """Whether a session has a key for its SSH proxy; True where it has no proxy."""
        profile = self._session(session_uuid).wish.profile
        if not profile.usesshproxy:
            return True
        key = profile.key if profile.sshproxysamepass else profile.sshproxykeyfile
        return has_key(key, profile.sshproxyautologin, self.ssh_rootdir)

    @translated
    def session_auto_connect(self, session_uuid: str) -> bool:
        """Connect a session without asking anybody; a HOOK is told if that cannot be.

        Called for profiles that want it, when one is registered.
        """
        session = self._session(session_uuid)
        if session.connection.is_connected:
            return True
        if not (
            self.session_can_auto_connect(session_uuid)
            and self.session_can_sshproxy_auto_connect(session_uuid)
        ):
            session.events.emit(events.LoginWanted(session=session.name))
            return False
        return self.connect_session(session_uuid)

    @translated
    def session_uses_sshproxy(self, session_uuid: str) -> bool:
        """Whether a session goes through an SSH proxy."""
        return self._session(session_uuid).wish.profile.usesshproxy

    @translated
    def session_reuses_sshproxy_authinfo(self, session_uuid: str) -> bool:
        """Whether the SSH proxy gets the session's password and key, too."""
        return self._session(session_uuid).wish.profile.sshproxysamepass

    @translated
    def is_session_connected(self, session_uuid: str) -> bool:
        """Whether a session is connected to its server."""
        return self._session(session_uuid).connection.is_connected

    @translated
    def is_profile_connected(self, profile_name: str) -> bool:
        """Whether a profile is connected to its server."""
        return bool(self.registry.connected(profile_name))
