"""The HOOK methods of a client: what an application overrides.

They are called by `dispatcher` alone, one after the other, on a thread of its own;
those that are asked for something each on another. One that raises is logged, and
changes nothing else. Here each writes a line to the log.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from x2go_session.errors import NotSupported

UNKNOWN = "UNKNOWN"


class Hooks:
    """What an application is told, and asked."""

    logger: logging.Logger

    # Asked for an answer.

    def HOOK_check_host_dialog(
        self,
        profile_name: str = UNKNOWN,
        host: str = UNKNOWN,
        port: int = 22,
        fingerprint: str = "no fingerprint",
        fingerprint_type: str = UNKNOWN,
    ) -> bool:
        """Say whether an unknown host key is right.

        True, the default, takes it into known_hosts; so override this.
        """
        self._told("check_host_dialog", profile_name, f"{host}:{port} {fingerprint}")
        return True

    def HOOK_broker_ignore_connection_problems(
        self, profile_name: str = UNKNOWN, is_profile_connected: bool = False
    ) -> bool:
        """Say whether to go on with a profile although its broker cannot be reached."""
        self._told("broker_ignore_connection_problems", profile_name)
        return False

    def HOOK_open_print_dialog(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> Any:
        """Return the print action for a document; None drops it. By default saved."""
        self._told("open_print_dialog", profile_name, session_name)
        return "PDFSAVE"

    def HOOK_open_mimebox_saveas_dialog(
        self,
        filename: str,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> Any:
        """Return where a file of the MIME box is saved; None: nowhere."""
        self._told("open_mimebox_saveas_dialog", profile_name, session_name)

    # The server.

    def HOOK_broker_connection_exception(self, profile_name: str = UNKNOWN) -> None:
        """Be told that the broker cannot be reached."""
        self._told("broker_connection_exception", profile_name)

    def HOOK_profile_auto_connect(self, profile_name: str = UNKNOWN) -> None:
        """Be told that a profile shall be connected, but needs its user for that."""
        self._told("profile_auto_connect", profile_name)

    def HOOK_on_control_session_death(self, profile_name: str) -> None:
        """Be told that the connection to a server is lost."""
        self._told("on_control_session_death", profile_name)

    def HOOK_on_failing_SFTP_client(self, profile_name: str, session_name: str) -> None:
        """Be told that the server has no SFTP for this user."""
        self._told("on_failing_SFTP_client", profile_name, session_name)

    def HOOK_no_such_command(
        self, cmd: str, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that the server does not have a program."""
        self._told("no_such_command", profile_name, session_name, cmd)

    # Sessions.

    def HOOK_session_startup_failed(self, profile_name: str = UNKNOWN) -> None:
        """Be told that a session could not be started or resumed."""
        self._told("session_startup_failed", profile_name)

    def HOOK_on_found_session_running_after_connect(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told of a session that ran already when its server was connected to."""
        self._told("on_found_session_running_after_connect", profile_name, session_name)

    def HOOK_on_session_has_started_by_me(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that this client started a session."""
        self._told("on_session_has_started_by_me", profile_name, session_name)

    def HOOK_on_session_has_started_by_other(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that another client started a session."""
        self._told("on_session_has_started_by_other", profile_name, session_name)

    def HOOK_on_session_has_resumed_by_me(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that this client resumed a session."""
        self._told("on_session_has_resumed_by_me", profile_name, session_name)

    def HOOK_on_session_has_resumed_by_other(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that another client resumed a session."""
        self._told("on_session_has_resumed_by_other", profile_name, session_name)

    def HOOK_on_session_has_been_suspended(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that a session was suspended."""
        self._told("on_session_has_been_suspended", profile_name, session_name)

    def HOOK_on_session_has_terminated(
        self,
        session_uuid: str = UNKNOWN,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
    ) -> None:
        """Be told that a session is over."""
        self._told("on_session_has_terminated", profile_name, session_name)

    # Desktops.

    def HOOK_desktop_sharing_denied(self, profile_name: str = UNKNOWN) -> None:
        """Be told that the owner of a desktop does not share it."""
        self._told("desktop_sharing_denied", profile_name)

    def HOOK_no_such_desktop(
        self, profile_name: str = UNKNOWN, desktop: str = UNKNOWN
    ) -> None:
        """Be told that a desktop that is to be shared is not there."""
        self._told("no_such_desktop", profile_name, desktop)

    def HOOK_list_desktops_timeout(self, profile_name: str = UNKNOWN) -> None:
        """Be told that the server did not list its desktops in time."""
        self._told("list_desktops_timeout", profile_name)

    # Tunnels and services.

    def HOOK_forwarding_tunnel_setup_failed(
        self,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
        chain_host: str = UNKNOWN,
        chain_port: int = 0,
        subsystem: str | None = None,
    ) -> None:
        """Be told that nxproxy cannot reach its agent."""
        self._told("forwarding_tunnel_setup_failed", profile_name, session_name)

    def HOOK_rforward_request_denied(
        self,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
        server_port: int = 0,
    ) -> None:
        """Be told that the server does not listen on a port for us."""
        self._told("rforward_request_denied", profile_name, session_name)

    def HOOK_on_sound_tunnel_failed(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that a session has no sound."""
        self._told("on_sound_tunnel_failed", profile_name, session_name)

    def HOOK_sshfs_not_available(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that the server cannot mount anything of ours."""
        self._told("sshfs_not_available", profile_name, session_name)

    def HOOK_foldersharing_not_available(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that a folder cannot be shared."""
        self._told("foldersharing_not_available", profile_name, session_name)

    def HOOK_printing_not_available(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that a session cannot print here."""
        self._told("printing_not_available", profile_name, session_name)

    def HOOK_printaction_error(
        self,
        filename: str,
        profile_name: str = UNKNOWN,
        session_name: str = UNKNOWN,
        err_msg: str = "GENERIC_ERROR",
        printer: str | None = None,
    ) -> None:
        """Be told that a document could not be printed, and why."""
        self._told("printaction_error", profile_name, session_name, err_msg)

    def HOOK_mimebox_not_available(
        self, profile_name: str = UNKNOWN, session_name: str = UNKNOWN
    ) -> None:
        """Be told that a session has no MIME box."""
        self._told("mimebox_not_available", profile_name, session_name)

    # For Windows only: this side's X servers and its PulseAudio.

    def HOOK_no_installed_xservers_found(self) -> NoReturn:
        """Raise `NotSupported`: for Windows only."""
        _for_windows("HOOK_no_installed_xservers_found")

    def HOOK_no_known_xserver_found(self) -> NoReturn:
        """Raise `NotSupported`: for Windows only."""
        _for_windows("HOOK_no_known_xserver_found")

    def HOOK_pulseaudio_not_supported_in_RDPsession(self) -> NoReturn:
        """Raise `NotSupported`: for Windows only."""
        _for_windows("HOOK_pulseaudio_not_supported_in_RDPsession")

    def HOOK_pulseaudio_server_startup_failed(self) -> NoReturn:
        """Raise `NotSupported`: for Windows only."""
        _for_windows("HOOK_pulseaudio_server_startup_failed")

    def HOOK_pulseaudio_server_died(self) -> NoReturn:
        """Raise `NotSupported`: for Windows only."""
        _for_windows("HOOK_pulseaudio_server_died")

    def _told(self, hook: str, *about: str) -> None:
        self.logger.info("HOOK_%s: %s", hook, " ".join(filter(None, about)))


def _for_windows(name: str) -> NoReturn:
    raise NotSupported(f"{name} is for clients on Windows, which this is not")
