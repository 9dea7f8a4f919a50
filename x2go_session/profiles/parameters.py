"""A profile in the words of python-x2go: the parameters of its `register_session`."""

from __future__ import annotations

from typing import Any, Final

from x2go_session.options import LINKS
from x2go_session.profiles.plan import geometry, pack
from x2go_session.profiles.profile import Profile
from x2go_session.services.mime_actions import ACTIONS

# The names that differ from the keys of the file.
RENAMED: Final = {
    "name": "profile_name",
    "user": "username",
    "sshport": "port",
    "key": "key_filename",
    "autologin": "look_for_keys",
    "autoconnect": "auto_connect",
    "autostart": "auto_start_or_resume",
    "forwardsshagent": "forward_sshagent",
    "uniquehostkeyaliases": "unique_hostkey_aliases",
    "published": "published_applications",
    "sndport": "snd_port",
    "print": "printing",
    "useexports": "allow_share_local_folders",
    "restoreexports": "restore_shared_local_folders",
    "useiconv": "convert_encoding",
    "iconvto": "server_encoding",
    "iconvfrom": "client_encoding",
    "usemimebox": "allow_mimebox",
    "setsessiontitle": "set_session_title",
    "sessiontitle": "session_title",
    "usesshproxy": "use_sshproxy",
    "sshproxyhost": "sshproxy_host",
    "sshproxyport": "sshproxy_port",
    "sshproxyuser": "sshproxy_user",
    "sshproxykeyfile": "sshproxy_key_filename",
    "sshproxyautologin": "sshproxy_look_for_keys",
    "rdpserver": "rdp_server",
    "rdpoptions": "rdp_options",
    "xdmcpserver": "xdmcp_server",
}
_AS_THEY_ARE: Final = ("applications", "xinerama", "clipboard", "kdrive")


def session_parameters(profile: Profile) -> dict[str, Any]:
    """Return what python-x2go makes of a profile, under the names that it has.

    `server` is the list of the profile's hosts, of which one is to be drawn. Pure.
    """
    values = profile.values()
    parameters: dict[str, Any] = {name: values[name] for name in _AS_THEY_ARE}
    parameters |= {name: values[key] for key, name in RENAMED.items()}
    parameters |= {
        "server": list(profile.host),
        "cmd": "XFCE" if profile.command == "XFCE4" else profile.command,
        "session_type": "application" if profile.rootless else "desktop",
        "link": LINKS[profile.speed],
        "pack": pack(profile),
        "geometry": geometry(profile),
        "kbtype": "null/null",
        "kblayout": "null",
        "kbvariant": "null",
        "snd_system": profile.soundsystem if profile.sound else "none",
        "share_local_folders": [each for each, auto in profile.export.items() if auto],
        "mimebox_extensions": list(filter(None, profile.mimeboxextensions.split(","))),
        "mimebox_action": profile.mimeboxaction,
    }
    if profile.mimeboxaction not in ACTIONS:
        parameters["mimebox_action"] = ACTIONS[0]
    if profile.usekbd:
        parameters["kbtype"] = profile.type.strip() or "null/null"
        parameters["kblayout"] = profile.layout.strip() or "null"
        parameters["kbvariant"] = profile.variant.strip() or "null"
    if profile.setdpi:
        parameters["dpi"] = profile.dpi
    if profile.autologin:
        parameters["allow_agent"] = True
    if profile.sshproxyautologin:
        parameters["sshproxy_allow_agent"] = True
    if profile.sshproxysameuser:
        parameters["sshproxy_user"] = profile.user
    if profile.sshproxysamepass:
        parameters["sshproxy_reuse_authinfo"] = True
        parameters["sshproxy_key_filename"] = profile.key
    return parameters
