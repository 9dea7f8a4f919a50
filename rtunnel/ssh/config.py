"""Decide how to connect: what the caller gave, then ssh_config(5), then defaults.

`resolve()` makes a `HostConfig` of the `Options` of a caller: every question has one
answer. The first giver wins, as in ssh(1):

1. keyword arguments,
2. `ssh_options`, which are ssh's `-o`,
3. the destination itself (`user@`, `:port`),
4. `~/.ssh/config`, or the file named with `config_file` (ssh's `-F`),
5. `/etc/ssh/ssh_config`, unless `config_file` names a file,
6. defaults.

Options mean what ssh_config(5) says. Three defaults differ, because a tunnel runs
unattended: a host key that is not known is refused unless someone can be asked, a
dead peer is noticed (`ServerAliveInterval` 15, not 0), and connecting ends
(`ConnectTimeout` 30, not whenever the kernel gives up).
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from rtunnel.addresses import Destination, parse_destination
from rtunnel.errors import ConfigError, InvalidAddress
from rtunnel.policy import Policy
from rtunnel.ssh.config_file import SYSTEM_FOLDER, Setting, Settings, parse_setting
from rtunnel.ssh.options import HostConfig, HostKeyPolicy, Options, PathLike

T = TypeVar("T")

SSH_PORT: Final = 22
CONNECT_TIMEOUT_S: Final = 30.0
KEEPALIVE_INTERVAL_S: Final = 15.0
KEEPALIVE_COUNT_MAX: Final = 3  # ServerAliveCountMax of ssh_config(5)
PASSWORD_PROMPTS: Final = 3  # NumberOfPasswordPrompts of ssh_config(5)
AUTH_METHODS: Final = ("publickey", "keyboard-interactive", "password")
# In the order of ssh_config(5), IdentityFile, without those that cannot be used here.
IDENTITY_FILES: Final = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
USER_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS: Final = (
    "/etc/ssh/ssh_known_hosts",
    "/etc/ssh/ssh_known_hosts2",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Everything of ssh_config(5) that is acted on here.
SUPPORTED: Final = _words(
    "AddressFamily BatchMode BindAddress CertificateFile Ciphers Compression "
    "ConnectTimeout GlobalKnownHostsFile HashKnownHosts HostKeyAlgorithms "
    "HostKeyAlias HostName IdentitiesOnly IdentityAgent IdentityFile "
    "KbdInteractiveAuthentication KexAlgorithms MACs NumberOfPasswordPrompts "
    "PasswordAuthentication PermitRemoteOpen Port PreferredAuthentications "
    "ProxyCommand ProxyJump ProxyUseFdpass PubkeyAcceptedAlgorithms "
    "PubkeyAuthentication RekeyLimit RevokedHostKeys ServerAliveCountMax "
    "ServerAliveInterval StrictHostKeyChecking Tag TCPKeepAlive User UserKnownHostsFile"
)
# What may be given with `-o` because commands for ssh(1) say it: it is what happens
# here anyway, or concerns what a tunnel has not (a terminal, X11, shared connections).
WITHOUT_EFFECT: Final = _words(
    "AddKeysToAgent CanonicalDomains CanonicalizeFallbackLocal CanonicalizeHostname "
    "CanonicalizeMaxDots CheckHostIP ClearAllForwardings ConnectionAttempts "
    "ControlMaster ControlPath ControlPersist EnableEscapeCommandline EscapeChar "
    "ExitOnForwardFailure FingerprintHash ForkAfterAuthentication ForwardAgent "
    "ForwardX11 ForwardX11Timeout ForwardX11Trusted GatewayPorts "
    "GSSAPIAuthentication GSSAPIDelegateCredentials HostbasedAuthentication "
    "IgnoreUnknown IPQoS LogLevel LogVerbose NoHostAuthenticationForLocalhost "
    "ObscureKeystrokeTiming PermitLocalCommand RequestTTY SendEnv SessionType SetEnv "
    "StdinNull StreamLocalBindUnlink SyslogFacility UpdateHostKeys VerifyHostKeyDNS "
    "VisualHostKey XAuthLocation"
)
_ALIASES: Final = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "dsaauthentication": "pubkeyauthentication",
}


def resolve(destination: str | Destination, options: Options) -> HostConfig:
    """Answer every question about a connection; reads the configuration files.

    Blocks while a `Match exec` command runs. Raises `InvalidAddress` and
    `ConfigError`.
    """
    if isinstance(destination, str):
        destination = parse_destination(destination)
    settings = Settings(destination.host, _local_user())
    for setting in _given(options):
        settings.add(setting)
    for name, value in (("User", destination.user), ("Port", destination.port)):
        if value is not None:
            settings.add(Setting(name, (str(value),), "destination"))
    settings.expand = lambda setting, text: _Answers(settings).expand(setting, text)
    settings.read(_config_files(options.config_file))
    return _Answers(settings).host_config()


def _given(options: Options) -> list[Setting]:
    """Return the caller's options as settings, in the order of their precedence."""
    settings: list[Setting] = []

    def put(name: str, keyword: str, *words: str) -> None:
        settings.append(Setting(name, words, f"option {keyword}"))

    def put_if(name: str, keyword: str, value: object) -> None:
        if value is not None:
            put(name, keyword, str(value))

    put_if("User", "user", options.user)
    put_if("Port", "port", options.port)
    for path in options.identity_files:
        put("IdentityFile", "identity_files", os.fspath(path))
    for path in options.certificate_files:
        put("CertificateFile", "certificate_files", os.fspath(path))
    if isinstance(options.agent, bool):
        put("IdentityAgent", "agent", "SSH_AUTH_SOCK" if options.agent else "none")
    elif options.agent is not None:
        put("IdentityAgent", "agent", os.fspath(options.agent))
    known_hosts = options.known_hosts
    if known_hosts is not None:
        files = (
            [known_hosts] if isinstance(known_hosts, str | os.PathLike) else known_hosts
        )
        put("UserKnownHostsFile", "known_hosts", *[os.fspath(file) for file in files])
        # Who names the files means these, not these and the machine's.
        put("GlobalKnownHostsFile", "known_hosts", "none")
    policy = options.host_key_policy
    put_if(
        "StrictHostKeyChecking",
        "host_key_policy",
        policy.value if isinstance(policy, HostKeyPolicy) else policy,
    )
    put_if("ProxyJump", "jump", options.jump)
    put_if("ProxyCommand", "proxy_command", options.proxy_command)
    put_if("ConnectTimeout", "connect_timeout_s", options.connect_timeout_s)
    put_if("ServerAliveInterval", "keepalive_interval_s", options.keepalive_interval_s)
    put_if("ServerAliveCountMax", "keepalive_count_max", options.keepalive_count_max)
    if options.ciphers is not None:
        ciphers = options.ciphers
        put(
            "Ciphers",
            "ciphers",
            ciphers if isinstance(ciphers, str) else ",".join(ciphers),
        )
    if options.compression is not None:
        put("Compression", "compression", "yes" if options.compression else "no")
    texts = (
        [f"{name}={value}" for name, value in options.ssh_options.items()]
        if isinstance(options.ssh_options, Mapping)
        else options.ssh_options
    )
    for text in texts:
        settings.extend(_dash_o(text))
    return settings


def _dash_o(text: str) -> list[Setting]:
    setting = parse_setting(text, f"-o {text}")
    if setting is None:
        return []
    name = setting.name.lower()
    name = _ALIASES.get(name, name)
    names = {known.lower(): known for known in (*SUPPORTED, *WITHOUT_EFFECT)}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {names[near[0]]}?" if near else ""
        raise ConfigError(f"-o {text}: no option {setting.name} here{hint}")
    return [Setting(names[name], setting.words, setting.place)]


def _config_files(config_file: PathLike | None) -> list[tuple[Path, Path]]:
    personal = Path.home() / ".ssh"
    if config_file is None:
        return [
            (personal / "config", personal),
            (SYSTEM_FOLDER / "ssh_config", SYSTEM_FOLDER),
        ]
    if os.fspath(config_file) == "none":
        return []
    path = Path(os.path.expanduser(config_file))
    try:
        path.stat()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror} (option config_file, -F)"
        ) from error
    return [(path, personal)]


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigError(
            f"user number {os.getuid()} has no name here: give one, as user@host"
        ) from None


class _Answers:
    """Turn settings into values; an error names the setting that is wrong."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tokens: dict[str, str] | None = None

    def host_config(self) -> HostConfig:
        host_key_policy = self._one_of(
            "StrictHostKeyChecking",
            {
                **{policy.value: policy for policy in HostKeyPolicy},
                "true": HostKeyPolicy.STRICT,
                "false": HostKeyPolicy.ACCEPT,
                "off": HostKeyPolicy.ACCEPT,
            },
            HostKeyPolicy.ASK,
        )
        self._refuse_what_would_be_unsafe_to_ignore()
        rekey_bytes, rekey_s = self._rekey_limit()
        identity_files = self._paths_collected("IdentityFile")
        return HostConfig(
            original_host=self.settings.original_host,
            host=self.host(),
            port=self.port(),
            user=self.user(),
            address_family=self._one_of(
                "AddressFamily",
                {
                    "any": socket.AF_UNSPEC,
                    "inet": socket.AF_INET,
                    "inet6": socket.AF_INET6,
                },
                socket.AF_UNSPEC,
            ),
            bind_address=self._text("BindAddress"),
            # 0 is no time limit of its own, as in ssh(1); here there is always one.
            connect_timeout_s=self._seconds("ConnectTimeout", CONNECT_TIMEOUT_S)
            or CONNECT_TIMEOUT_S,
            tcp_keepalive=self._flag("TCPKeepAlive", True),
            proxy_command=self._proxy_command(),
            proxy_jump=self._proxy_jump(),
            ciphers=self._text("Ciphers"),
            macs=self._text("MACs"),
            kex_algorithms=self._text("KexAlgorithms"),
            host_key_algorithms=self._text("HostKeyAlgorithms"),
            pubkey_algorithms=self._text("PubkeyAcceptedAlgorithms"),
            compression=self._flag("Compression", False),
            rekey_bytes=rekey_bytes,
            rekey_s=rekey_s,
            keepalive_interval_s=self._seconds(
                "ServerAliveInterval", KEEPALIVE_INTERVAL_S
            ),
            keepalive_count_max=self._count("ServerAliveCountMax", KEEPALIVE_COUNT_MAX),
            host_key_alias=self._text("HostKeyAlias"),
            host_key_policy=host_key_policy,
            user_known_hosts=self._paths("UserKnownHostsFile", USER_KNOWN_HOSTS),
            global_known_hosts=self._paths("GlobalKnownHostsFile", GLOBAL_KNOWN_HOSTS),
            hash_known_hosts=self._flag("HashKnownHosts", False),
            identity_files=(
                tuple(Path(path).expanduser() for path in IDENTITY_FILES)
                if identity_files is None
                else identity_files
            ),
            identity_files_given=identity_files is not None,
            certificate_files=self._paths_collected("CertificateFile") or (),
            identities_only=self._flag("IdentitiesOnly", False),
            identity_agent=self._identity_agent(),
            auth_methods=self._auth_methods(),
            password_prompts=self._count("NumberOfPasswordPrompts", PASSWORD_PROMPTS),
            batch_mode=self._flag("BatchMode", False),
            permit_remote_open=self._permit_remote_open(),
        )

    # Who and where. These may be asked for before all settings are known: `Match
    # exec` needs their tokens.

    def host(self) -> str:
        setting = self.settings.get("HostName")
        if setting is None:
            return self.settings.original_host
        host = _expand(setting, setting.value, {"h": self.settings.original_host})
        return self._checked(setting, lambda: Destination(None, host, None).host)

    def port(self) -> int:
        setting = self.settings.get("Port")
        if setting is None:
            return SSH_PORT
        if not setting.value.isdecimal() or not 1 <= int(setting.value) <= 65535:
            raise setting.error("a port is a number from 1 to 65535")
        return int(setting.value)

    def user(self) -> str:
        setting = self.settings.get("User")
        if setting is None:
            return self.settings.local_user
        return self._checked(
            setting, lambda: Destination(setting.value, "host", None).user or ""
        )

    @staticmethod
    def _checked(setting: Setting, make: Callable[[], str]) -> str:
        try:
            return make()
        except InvalidAddress as error:
            raise setting.error(str(error)) from None

    # Texts with tokens.

    def tokens(self) -> dict[str, str]:
        """Return the %-tokens of ssh_config(5), TOKENS."""
        here = socket.gethostname()
        host, port, user = self.host(), str(self.port()), self.user()
        jump = self._text("ProxyJump") or ""
        together = f"{here}{host}{port}{user}{jump}".encode()
        return {
            "C": hashlib.sha1(together, usedforsecurity=False).hexdigest(),
            "d": str(Path.home()),
            "h": host,
            "i": str(os.getuid()),
            "j": jump,
            "k": self._text("HostKeyAlias") or self.settings.original_host,
            "L": here.partition(".")[0],
            "l": here,
            "n": self.settings.original_host,
            "p": port,
            "r": user,
            "u": self.settings.local_user,
        }

    def expand(self, setting: Setting, text: str) -> str:
        return _expand(setting, text, self.tokens())

    def _path(self, setting: Setting, word: str) -> Path:
        """Expand tokens, ${VARIABLES} and ~ of a file name."""

        def variable(match: re.Match[str]) -> str:
            value = os.environ.get(match[1])
            if value is None:
                raise setting.error(f"the environment has no variable {match[1]}")
            return value

        word = re.sub(r"\$\{([^}]*)\}", variable, word)
        return Path(os.path.expanduser(self.expand(setting, word)))

    def _paths(self, name: str, default: Sequence[str]) -> tuple[Path, ...]:
        setting = self.settings.get(name)
        if setting is None:
            return tuple(Path(path).expanduser() for path in default)
        if setting.value.lower() == "none":
            return ()
        return tuple(self._path(setting, word) for word in setting.words)

    def _paths_collected(self, name: str) -> tuple[Path, ...] | None:
        settings = self.settings.all(name)
        if not settings:
            return None
        return tuple(
            self._path(setting, setting.value)
            for setting in settings
            if setting.value.lower() != "none"
        )

    def _identity_agent(self) -> Path | None:
        setting = self.settings.get("IdentityAgent")
        value = setting.value if setting else "SSH_AUTH_SOCK"
        if value.lower() == "none":
            return None
        if value == "SSH_AUTH_SOCK" or re.fullmatch(r"\$\w+", value):
            path = os.environ.get(value.removeprefix("$"))
            return Path(path) if path else None
        assert setting is not None
        return self._path(setting, value)

    def _proxy_command(self) -> str | None:
        setting = self.settings.get("ProxyCommand")
        if setting is None or setting.value.lower() == "none":
            return None
        tokens = self.tokens()
        return _expand(setting, setting.value, {key: tokens[key] for key in "hnpr"})

    def _proxy_jump(self) -> tuple[str, ...]:
        setting = self.settings.get("ProxyJump")
        if setting is None or setting.value.lower() == "none":
            return ()
        hops = tuple(
            hop.strip() for hop in self.expand(setting, setting.value).split(",")
        )
        for hop in hops:
            try:
                parse_destination(hop)
            except InvalidAddress as error:
                raise setting.error(str(error)) from None
        return hops

    # Plain values.

    def _text(self, name: str) -> str | None:
        setting = self.settings.get(name)
        return setting.value if setting else None

    def _one_of(self, name: str, values: Mapping[str, T], default: T) -> T:
        setting = self.settings.get(name)
        if setting is None:
            return default
        value = values.get(setting.value.lower())
        if value is None:
            raise setting.error(f"expected one of: {', '.join(values)}")
        return value

    def _flag(self, name: str, default: bool) -> bool:
        values = {"yes": True, "no": False, "true": True, "false": False}
        return self._one_of(name, values, default)

    def _count(self, name: str, default: int) -> int:
        setting = self.settings.get(name)
        if setting is None:
            return default
        if not setting.value.isdecimal() or int(setting.value) < 1:
            raise setting.error("expected a number from 1 on")
        return int(setting.value)

    def _seconds(self, name: str, default: float) -> float:
        setting = self.settings.get(name)
        if setting is None or setting.value.lower() == "none":
            return default
        seconds = _parse_seconds(setting.value)
        if seconds is None:
            raise setting.error("expected a time, such as 30 or 2m")
        return seconds

    def _rekey_limit(self) -> tuple[int | None, float | None]:
        setting = self.settings.get("RekeyLimit")
        if setting is None:
            return None, None
        size, *more = (word.lower() for word in setting.words)
        units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
        number = size[:-1] if size[-1] in units else size
        after_s = _parse_seconds(more[0]) if more and more[0] != "none" else None
        if size != "default" and not number.isdecimal():
            raise setting.error("expected a size, such as 1G, then perhaps a time")
        if len(more) > 1 or (more and more[0] != "none" and not after_s):
            raise setting.error("expected a time after the size, such as 1h")
        limit = None if size == "default" else int(number) * units.get(size[-1], 1)
        return limit or None, after_s

    def _permit_remote_open(self) -> tuple[str, ...] | None:
        setting = self.settings.get("PermitRemoteOpen")
        if setting is None:
            return None
        try:
            Policy.of(permit_open=setting.words)
        except ValueError as error:
            raise setting.error(str(error)) from None
        return setting.words

    def _auth_methods(self) -> tuple[str, ...]:
        wanted = self._text("PreferredAuthentications")
        order = wanted.split(",") if wanted else AUTH_METHODS
        allowed = {
            "publickey": self._flag("PubkeyAuthentication", True),
            "keyboard-interactive": self._flag("KbdInteractiveAuthentication", True),
            "password": self._flag("PasswordAuthentication", True),
        }
        return tuple(method for method in order if allowed.get(method))

    def _refuse_what_would_be_unsafe_to_ignore(self) -> None:
        setting = self.settings.get("ProxyUseFdpass")
        if setting is not None and setting.value.lower() in ("yes", "true"):
            raise setting.error("descriptors passed by a ProxyCommand are not taken")
        setting = self.settings.get("RevokedHostKeys")
        if setting is not None and setting.value.lower() != "none":
            raise setting.error(
                "revocation lists are not read; put @revoked lines into known_hosts"
            )


def _expand(setting: Setting, text: str, tokens: Mapping[str, str]) -> str:
    def token(match: re.Match[str]) -> str:
        key = match[1]
        if key == "%":
            return "%"
        if key not in tokens:
            raise setting.error(
                f"%{key} means nothing here; there is %% and "
                + ", ".join(f"%{name}" for name in tokens)
            )
        return tokens[key]

    return re.sub(r"%(.?)", token, text, flags=re.DOTALL)


def _parse_seconds(text: str) -> float | None:
    """Read a time of sshd_config(5), TIME FORMATS; also fractions of a second."""
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    parts = re.findall(r"(\d+)([smhdw]?)", text.lower(), re.ASCII)
    if not parts or "".join(n + unit for n, unit in parts) != text.lower():
        return None
    scale = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    return float(sum(int(number) * scale[unit] for number, unit in parts))
