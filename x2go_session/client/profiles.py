"""The files of an X2Go client: profiles, settings, printing; and where they are."""

from __future__ import annotations

import getpass
from typing import Any

from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import translated
from x2go_session.profiles import ClientSettings, PrintingFile, SessionProfiles
from x2go_session.registry.brokered import BrokeredProfiles


class Profiles(ClientBase):
    """Reads and writes what X2Go clients keep in files."""

    @property
    @translated
    def profile_names(self) -> list[str]:
        """The names of all profiles in the `sessions` files."""
        return list(self.session_profiles.names.values())

    def get_profiles(self) -> SessionProfiles | BrokeredProfiles:
        """Return the profiles, to be read and changed; a broker's, to be read."""
        return self.session_profiles

    get_session_profiles = get_profiles

    @translated
    def get_profile_config(
        self, profile_id_or_name: str, parameter: str | None = None
    ) -> Any:
        """Return all that a profile says, by key; or one value of it."""
        if parameter is None:
            return self.session_profiles.values(profile_id_or_name)
        return self.session_profiles.get(profile_id_or_name, parameter)

    with_profile_config = get_profile_config

    @translated
    def set_profile_config(
        self, profile_id_or_name: str, parameter: str, value: Any
    ) -> bool:
        """Change a value of a profile, and write it to the user's file."""
        self.session_profiles.set(profile_id_or_name, parameter, value)
        self.session_profiles.write()
        return True

    @translated
    def get_profile_metatype(self, profile_name: str) -> str:
        """Return what kind of profile it is, for a person."""
        return self.session_profiles[profile_name].metatype

    @translated
    def to_profile_id(self, profile_name: str) -> str:
        """Return the id of a profile."""
        return self.session_profiles.to_id(profile_name)

    @translated
    def to_profile_name(self, profile_id: str) -> str:
        """Return the name of a profile."""
        return self._name_of(profile_id)

    @translated
    def is_session_profile(self, profile_id_or_name: str) -> bool:
        """Whether there is a profile of this id or name."""
        return profile_id_or_name in self.session_profiles

    def get_client_settings(self) -> ClientSettings:
        """Return the `settings` file, to be read and changed."""
        return self.client_settings

    def get_client_printing(self) -> PrintingFile:
        """Return the `printing` file, to be read and changed."""
        return self.client_printing

    def get_client_rootdir(self) -> str:
        """Return the folder of these files."""
        return str(self.client_rootdir)

    def get_sessions_rootdir(self) -> str:
        """Return the folder where sessions have theirs on this side."""
        return str(self.sessions_rootdir)

    def get_ssh_rootdir(self) -> str:
        """Return the folder of known hosts and keys."""
        return str(self.ssh_rootdir)

    def get_client_username(self) -> str:
        """Return the user of this program."""
        return getpass.getuser()
