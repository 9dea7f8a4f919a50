"""Folders that sessions share, and what is done with what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtunnel.errors import RTunnelError
from x2go_session import events
from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import (
    X2GoClientException,
    X2GoPrintActionException,
    translated,
)
from x2go_session.errors import ServiceError
from x2go_session.registry import RegisteredSession
from x2go_session.services.print_actions import (
    PrintAction,
    PrintActionError,
    print_action,
)


class Sharing(ClientBase):
    """Shares folders with the master session of a profile. Each method blocks."""

    @translated
    def share_local_folder(
        self,
        session_uuid: str | None = None,
        local_path: str | None = None,
        profile_name: str | None = None,
        folder_name: str | None = None,
    ) -> bool:
        """Share a folder; False if that failed, of which a HOOK is told."""
        session = self._sharer(session_uuid, profile_name)
        folder = _named(local_path or folder_name)
        try:
            session.share(folder)
        except (ServiceError, RTunnelError) as error:
            session.events.emit(
                events.FolderNotShared(
                    session=session.name, folder=folder, reason=str(error)
                )
            )
            return False
        return True

    @translated
    def unshare_local_folder(
        self,
        session_uuid: str | None = None,
        profile_name: str | None = None,
        local_path: str | None = None,
    ) -> bool:
        """Share a folder no more; False if the server cannot unmount it."""
        session = self._sharer(session_uuid, profile_name)
        try:
            session.unshare(_named(local_path))
        except ServiceError:
            return False
        return True

    unshare_local_folder_from_profile = unshare_local_folder
    unshare_local_folder_from_session = unshare_local_folder

    @translated
    def unshare_all_local_folders(
        self, session_uuid: str | None = None, profile_name: str | None = None
    ) -> bool:
        """Share no folder any more; False if the server cannot unmount one."""
        session = self._sharer(session_uuid, profile_name)
        return all(
            [
                self.unshare_local_folder(session.uuid, local_path=str(folder))
                for folder in session.shared_folders
            ]
        )

    unshare_all_local_folders_from_profile = unshare_all_local_folders
    unshare_all_local_folders_from_session = unshare_all_local_folders

    @translated
    def get_shared_folders(
        self,
        session_uuid: str | None = None,
        profile_name: str | None = None,
        check_list_mounts: bool = False,
    ) -> list[str]:
        """Return the folders that are shared; asks the server for them if told so."""
        session = self._sharer(session_uuid, profile_name)
        folders = session.folders_on_server() if check_list_mounts else None
        found = session.shared_folders if folders is None else folders
        return [str(each) for each in found]

    profile_get_shared_folders = get_shared_folders
    session_get_shared_folders = get_shared_folders

    @translated
    def is_folder_sharing_available(
        self, session_uuid: str | None = None, profile_name: str | None = None
    ) -> bool:
        """Whether folders can be shared."""
        return self._sharer(session_uuid, profile_name).can_share

    @translated
    def set_session_print_action(
        self, session_uuid: str, print_action: str | PrintAction, **kwargs: Any
    ) -> None:
        """Do this with what a session prints: PDFVIEW, PDFSAVE, PRINT, PRINTCMD ...

        `kwargs` are the argument of the action, as python-x2go calls it.
        """
        self._session(session_uuid).use_print_action(_action(print_action, kwargs))

    def _sharer(
        self, session_uuid: str | None, profile_name: str | None
    ) -> RegisteredSession:
        """Return the master of the profile, or the session itself."""
        if session_uuid is None and profile_name is None:
            raise X2GoClientException("name a session by its UUID, or by its profile")
        if session_uuid is not None:
            session = self._session(session_uuid)
            if session.is_shown:
                return session
            profile_name = session.profile_name
        master = self.registry.master(profile_name or "")
        return master or self._one(session_uuid, profile_name)


def _named(folder: str | None) -> Path:
    if folder is None:
        raise X2GoClientException("name a folder of this machine")
    return Path(folder)


def _action(action: str | PrintAction, arguments: dict[str, Any]) -> PrintAction:
    if not isinstance(action, str):
        return action
    try:
        return print_action(action, **arguments)
    except (PrintActionError, TypeError) as error:
        raise X2GoPrintActionException(str(error)) from error
