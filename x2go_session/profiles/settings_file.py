"""The `settings` file: how the client itself behaves.

settings = ClientSettings()                 # ~/.x2goclient, then /etc/x2goclient
settings.get("trayicon", "enabled")         # True
settings.set("General", "autoresume", False)
settings.write()
"""

from __future__ import annotations

from typing import ClassVar

from x2go_session.profiles.typed_file import Defaults, TypedFile


class ClientSettings(TypedFile):
    """The settings of an X2Go client."""

    FILE_NAME: ClassVar = "settings"
    DEFAULTS: ClassVar[Defaults] = {
        "LDAP": {
            "useldap": False,
            "port": 389,
            "server": "localhost",
            "port1": 0,
            "port2": 0,
        },
        "General": {"clientport": 22, "autoresume": True},
        "Authorization": {
            "newprofile": True,
            "suspend": True,
            "editprofile": True,
            "resume": True,
        },
        "trayicon": {
            "enabled": True,
            "mintotray": True,
            "noclose": True,
            "mincon": True,
            "maxdiscon": True,
        },
    }
