"""Options come from the caller, then from ssh_config(5) files, as ssh(1) takes them."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.errors import ConfigError, InvalidAddress
from rtunnel.ssh.config import resolve
from rtunnel.ssh.config_file import split_words
from rtunnel.ssh.options import HostConfig, HostKeyPolicy, Options
from rtunnel.ssh.patterns import match_list, match_pattern


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def lookup(
    home: Path, text: str, destination: str = "web", **options: object
) -> HostConfig:
    path = write(home / "given", text)
    return resolve(destination, Options(config_file=path, **options))  # type: ignore[arg-type]


def test_without_any_file_the_defaults_hold(home: Path) -> None:
    config = resolve("web", Options(config_file="none"))
    assert (config.host, config.port, config.user) == ("web", 22, getpass.getuser())
    assert config.host_key_policy is HostKeyPolicy.ASK
    assert config.user_known_hosts[0] == home / ".ssh/known_hosts"
    assert home / ".ssh/id_ed25519" in config.identity_files
    assert not config.identity_files_given
    assert config.auth_methods == ("publickey", "keyboard-interactive", "password")
    assert config.proxy_jump == ()
    assert config.proxy_command is None
    assert config.keepalive_count_max == 3


def test_an_alias_stands_for_host_user_and_port(home: Path) -> None:
    text = "Host web\n HostName %h.example.org\n User me\n Port=2222\n"
    config = lookup(home, text)
    assert str(config) == "me@web.example.org:2222"
    assert config.original_host == "web"


def test_the_first_value_wins(home: Path) -> None:
    config = lookup(home, "Host web\nPort 1\nPort 2\nHost *\nPort 3\nUser last\n")
    assert (config.port, config.user) == (1, "last")


def test_arguments_win_over_o_over_the_destination_over_the_file(home: Path) -> None:
    text = "User file\nPort 4\nHostKeyAlias file\n"
    both = {"User": "o", "Port": "2"}
    assert lookup(home, text, "dest@web:3", user="arg", ssh_options=both).user == "arg"
    assert lookup(home, text, "dest@web:3", ssh_options=both).port == 2
    assert lookup(home, text, "dest@web:3").user == "dest"
    assert lookup(home, text).port == 4


def test_the_personal_file_wins_over_the_machines(home: Path) -> None:
    write(home / ".ssh/config", "Host web\nPort 2022\n")
    assert resolve("web", Options()).port == 2022


def test_a_named_file_replaces_both_and_must_exist(home: Path) -> None:
    write(home / ".ssh/config", "Port 2022\n")
    assert lookup(home, "User me\n").port == 22
    with pytest.raises(ConfigError, match="absent: No such file"):
        resolve("web", Options(config_file=home / "absent"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/" + "x" * 300, "File name too long"),
        ("~no-such-user/config", "~no-such-user/config: No such file"),
    ],
)
def test_a_file_that_cannot_be_looked_at_is_named_with_the_reason(
    home: Path, name: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve("web", Options(config_file=name))


def test_a_key_of_nobody_that_is_here_is_a_file_that_is_not_there(home: Path) -> None:
    given = Options(config_file="none", identity_files=["~no-such-user/id"])
    assert resolve("web", given).identity_files == (Path("~no-such-user/id"),)


def test_a_file_that_others_can_write_is_refused(home: Path) -> None:
    path = write(home / "given", "Port 1\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        resolve("web", Options(config_file=path))


@pytest.mark.parametrize(
    ("line", "applies"),
    [
        ("Host web", True),
        ("Host w?b", True),
        ("Host other web", True),
        ("Host *", True),
        ("Host * !web", False),
        ("Host !other", False),
        ("Host web.example.org", False),
        ("Match all", True),
        ("Match host web.example.org", True),
        ("Match host web", False),
        ("Match host *.ORG,x", True),
        ("Match host *.org,!web.*", False),
        ("Match originalhost web", True),
        ("Match !originalhost web", False),
        ("Match user me", True),
        ("Match user other", False),
        ("Match originalhost web user me", True),
        ("Match originalhost web user other", False),
        ("Match localuser {me}", True),
        ("Match localuser nobody-else", False),
        ("Match exec true", True),
        ("Match exec false", False),
        ('Match exec "test %n = web -a %r = me -a %p = 22"', True),
        ("Match !exec false", True),
        ("Match canonical", False),
        ("Match final", True),
        ("Match final host web.example.org", True),
        ("Match sessiontype none", True),
        ("Match tagged blue", True),
        ("Match localnetwork 0.0.0.0/0", False),
    ],
)
def test_a_block_applies_where_ssh_says(home: Path, line: str, applies: bool) -> None:
    line = line.replace("{me}", getpass.getuser())
    text = (
        "Host web\n HostName web.example.org\n User me\n Tag blue\n"
        f"{line}\n HostKeyAlias inside\nMatch all\n HostKeyAlias outside\n"
    )
    if "Match final" in line:  # what the second pass finds comes after the first
        text = text.replace("Match all\n HostKeyAlias outside\n", "")
    alias = lookup(home, text).host_key_alias
    assert alias == ("inside" if applies else "outside")


def test_a_match_command_does_not_run_once_the_line_has_failed(home: Path) -> None:
    lookup(home, f"Match originalhost other exec 'touch {home}/ran'\n Port 1\n")
    assert not (home / "ran").exists()


def test_included_files_stand_where_they_are_included(home: Path) -> None:
    write(home / ".ssh/a.conf", "Host web\n Port 1\nHost *\n User a\n")
    write(home / ".ssh/b.conf", "User b\n")
    config = lookup(home, "Include *.conf absent.conf\nPort 9\nUser last\n")
    assert (config.port, config.user) == (1, "a")


def test_an_include_inside_a_block_counts_only_where_the_block_does(home: Path) -> None:
    write(home / ".ssh/a.conf", "Host *\n Port 1\n")
    assert lookup(home, "Host other\n Include a.conf\nHost web\n User me\n").port == 22


def test_after_an_include_the_block_goes_on(home: Path) -> None:
    write(home / ".ssh/a.conf", "Host other\n Port 1\n")
    assert lookup(home, "Host web\n Include a.conf\n Port 7\n").port == 7


def test_files_that_include_each_other_are_refused(home: Path) -> None:
    write(home / ".ssh/a.conf", "Include a.conf\n")
    with pytest.raises(ConfigError, match=r"a\.conf line 1: .*16 deep"):
        lookup(home, "Include a.conf\n")


def test_identity_files_add_up_and_their_tokens_are_expanded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    text = (
        "Host web\n IdentityFile ~/%r@%h:%p\n"
        'Host *\n IdentityFile "/with space/%%"\n IdentityFile ${KEYS}/%n\n'
    )
    config = lookup(home, text, "me@web", identity_files=["/first"])
    assert [str(path) for path in config.identity_files] == [
        "/first",
        f"{home}/me@web:22",
        "/with space/%",
        "/keys/web",
    ]
    assert config.identity_files_given


def test_known_hosts_may_be_several_files_or_none(home: Path) -> None:
    config = lookup(home, "UserKnownHostsFile ~/a %d/b\nGlobalKnownHostsFile none\n")
    assert config.user_known_hosts == (home / "a", home / "b")
    assert config.global_known_hosts == ()
    assert lookup(home, "", known_hosts=home / "c").user_known_hosts == (home / "c",)


def test_the_agent_is_that_of_the_environment_unless_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lookup(home, "").identity_agent is None
    monkeypatch.setenv("SSH_AUTH_SOCK", "/env.sock")
    monkeypatch.setenv("OTHER", "/other.sock")
    assert lookup(home, "").identity_agent == Path("/env.sock")
    assert lookup(home, "IdentityAgent none\n").identity_agent is None
    assert lookup(home, "IdentityAgent ~/a\n").identity_agent == home / "a"
    assert lookup(home, "IdentityAgent $OTHER\n").identity_agent == Path("/other.sock")
    assert lookup(home, "", agent=False).identity_agent is None
    assert lookup(home, "", agent="/x").identity_agent == Path("/x")


def test_a_proxy_command_keeps_its_quotes_and_gets_its_tokens(home: Path) -> None:
    text = "ProxyCommand nc -x 'a  b' \"%h\" %p # %%r\n"
    assert lookup(home, text).proxy_command == "nc -x 'a  b' \"web\" 22 # %r"


def test_of_proxy_jump_and_proxy_command_the_first_wins(home: Path) -> None:
    config = lookup(home, "ProxyJump me@a:1,ssh://b\nProxyCommand nc %h %p\n")
    assert (config.proxy_jump, config.proxy_command) == (("me@a:1", "ssh://b"), None)
    config = lookup(home, "ProxyCommand nc\nProxyJump a\n")
    assert (config.proxy_jump, config.proxy_command) == ((), "nc")
    config = lookup(home, "ProxyJump none\nProxyCommand nc\n")
    assert (config.proxy_jump, config.proxy_command) == ((), None)
    assert lookup(home, "ProxyCommand nc\n", jump="c").proxy_jump == ("c",)


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7), ("2m", 120), ("1h30m", 5400), ("0.5", 0.5)]
)
def test_times_are_read_in_the_formats_of_sshd(
    home: Path, text: str, seconds: float
) -> None:
    assert lookup(home, f"ConnectTimeout {text}\n").connect_timeout_s == seconds


def test_a_rekey_limit_has_a_size_and_perhaps_a_time(home: Path) -> None:
    def limit(text: str) -> tuple[int | None, float | None]:
        config = lookup(home, f"RekeyLimit {text}\n")
        return config.rekey_bytes, config.rekey_s

    assert limit("64K") == (65536, None)
    assert limit("1G 1h") == (1 << 30, 3600)
    assert limit("default none") == (None, None)
    assert limit("500") == (500, None)


def test_methods_are_those_preferred_and_not_switched_off(home: Path) -> None:
    text = (
        "PreferredAuthentications password,gssapi-with-mic,publickey,"
        "keyboard-interactive\nChallengeResponseAuthentication no\n"
    )
    with_o = {"KbdInteractiveAuthentication": "no"}
    assert lookup(home, text, ssh_options=with_o).auth_methods == (
        "password",
        "publickey",
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Port 0", "Port 0: a port is a number from 1"),
        ("Port x", "a port is a number"),
        ("User a;b", "characters that do not belong"),
        ("HostName $(id)", "not a host name"),
        ("HostName %z", "%z means nothing here"),
        ("StrictHostKeyChecking maybe", "expected one of: yes, ask, accept-new, no"),
        ("Compression si", "expected one of: yes, no"),
        ("AddressFamily ipv4", "expected one of: any, inet, inet6"),
        ("ConnectTimeout soon", "expected a time"),
        ("ServerAliveCountMax 0", "expected a number from 1 on"),
        ("RekeyLimit lots", "expected a size"),
        ("RekeyLimit 1G later", "expected a time after the size"),
        ("ProxyJump a b:x", "cannot understand destination"),
        ("IdentityFile ${NO_SUCH}/x", "no variable NO_SUCH"),
        ("ProxyUseFdpass yes", "descriptors"),
        ("RevokedHostKeys /x", "@revoked"),
        ('User "open', 'quote " is not closed'),
        ("Port", "a value is missing"),
        ("Match user", "needs an argument"),
    ],
)
def test_an_error_names_the_file_and_the_line(home: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lookup(home, f"# comment\n{line}\n")
    assert f"{home}/given line 2: " in str(caught.value)
    assert says in str(caught.value)


def test_a_keyword_that_nobody_knows_is_ignored_in_a_file(home: Path) -> None:
    assert lookup(home, "FancyNewThing yes\nForwardX11 yes\nPort 7\n").port == 7


def test_an_option_that_nobody_knows_is_refused_with_the_nearest_name() -> None:
    options = Options(config_file="none", ssh_options=["StrictHostKeyCheking=no"])
    with pytest.raises(ConfigError, match="did you mean StrictHostKeyChecking"):
        resolve("web", options)


@pytest.mark.parametrize("text", ["Port=7", "port 7", "Port = 7"])
def test_o_is_read_as_a_line_of_the_file(text: str) -> None:
    assert resolve("web", Options(config_file="none", ssh_options=[text])).port == 7


def test_options_of_ssh_that_change_nothing_here_are_accepted() -> None:
    texts = ["ExitOnForwardFailure=yes", "ControlMaster=no", "LogLevel=ERROR"]
    resolve("web", Options(config_file="none", ssh_options=texts))


def test_a_bad_keyword_argument_is_named() -> None:
    with pytest.raises(ConfigError, match="option port: Port 70000"):
        resolve("web", Options(config_file="none", port=70000))
    with pytest.raises(InvalidAddress):
        resolve("", Options(config_file="none"))


def test_jump_hosts_get_what_describes_this_side_and_no_secret_text() -> None:
    options = Options(
        user="me", port=7, password="secret", passphrase="p", ssh_options=["Port=7"],
        known_hosts="/k", identity_files=["/i"], config_file="none",
    )  # fmt: skip
    hop = options.for_jump_host("other")
    assert (hop.user, hop.port, hop.password, hop.ssh_options) == (None, None, None, ())
    assert (hop.known_hosts, hop.passphrase, hop.jump) == ("/k", "p", "other")
    assert list(hop.identity_files) == []


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(Options(password="hunter2", passphrase="hunter2"))


def ssh_says(home: Path, destination: str, *arguments: str) -> dict[str, list[str]]:
    """Return what ssh(1) makes of the same file: the keywords that `-G` prints."""
    command = ["ssh", "-G", "-F", str(home / "given"), *arguments, destination]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        said.setdefault(name, []).append(value)
    return said


@pytest.mark.parametrize("destination", ["web", "db", "me@web", "ssh://x@db:99"])
@pytest.mark.parametrize(
    "text",
    [
        "Host web\n Port 1\n User a\nHost * !web\n Port 2\n",
        "Match originalhost web\n HostName 10.0.0.1\nMatch host 10.0.0.*\n Port 3\n",
        "User u\nMatch user u\n Port 4\nMatch user x\n Port 5\n User y\n",
        "ServerAliveInterval 5m\nServerAliveCountMax 9\nMatch final\n Port 8\n",
        'Match host db exec "test %n = db"\n Port 6\n ProxyJump j:7,k\n',
        "Host d*\n Compression yes\n BatchMode yes\n TCPKeepAlive no\n",
        "IdentityFile /a\nIdentityFile /b\nIdentitiesOnly yes\nIdentityFile /a\n",
        "StrictHostKeyChecking accept-new\nUserKnownHostsFile /a /b\nHostKeyAlias z\n",
        "NumberOfPasswordPrompts 1\nHashKnownHosts yes\nConnectTimeout 3\n",
    ],
)
def test_files_mean_what_they_mean_to_ssh(
    home: Path, text: str, destination: str
) -> None:
    config = lookup(home, text, destination)
    said = ssh_says(home, destination)
    yes_no = {True: "yes", False: "no"}
    assert [config.host] == said["hostname"]
    assert [str(config.port)] == said["port"]
    assert [config.user] == said["user"]
    assert said["compression"] == [yes_no[config.compression]]
    assert said["batchmode"] == [yes_no[config.batch_mode]]
    assert said["tcpkeepalive"] == [yes_no[config.tcp_keepalive]]
    assert said["identitiesonly"] == [yes_no[config.identities_only]]
    assert said["hashknownhosts"] == [yes_no[config.hash_known_hosts]]
    assert said["numberofpasswordprompts"] == [str(config.password_prompts)]
    assert said["serveralivecountmax"] == [str(config.keepalive_count_max)]
    assert said.get("proxyjump", [""]) == [",".join(config.proxy_jump)]
    assert said.get("hostkeyalias") == (
        [config.host_key_alias] if config.host_key_alias else None
    )
    if config.identity_files_given:
        assert said["identityfile"] == list(map(str, config.identity_files))
    if "ServerAlive" in text:
        assert said["serveraliveinterval"] == [f"{config.keepalive_interval_s:.0f}"]
    if "ConnectTimeout" in text:
        assert said["connecttimeout"] == [f"{config.connect_timeout_s:.0f}"]
    if "UserKnownHostsFile" in text:
        assert said["userknownhostsfile"] == [
            " ".join(map(str, config.user_known_hosts))
        ]


def test_address_family_is_that_of_the_socket_module(home: Path) -> None:
    assert lookup(home, "AddressFamily inet6\n").address_family == socket.AF_INET6


@given(st.lists(st.text("abc \"'\\#=%", min_size=1), max_size=5))
def test_what_a_shell_quotes_is_read_back(words: list[str]) -> None:
    quoted = ['"' + w.replace("\\", "\\\\").replace('"', '\\"') + '"' for w in words]
    assert split_words(" ".join(quoted)) == tuple(words)


@given(st.text("ab*?.", max_size=8))
def test_a_pattern_matches_the_text_that_it_is_without_wildcards(text: str) -> None:
    assert match_pattern(text.replace("*", "xyz").replace("?", "x"), text)


def test_only_star_and_question_mark_are_special() -> None:
    assert not match_pattern("a", "[a]")
    assert match_pattern("[a]", "[a]")
    assert not match_pattern("a.b", "a?")
    assert not match_list("web", "!web,*")
    assert not match_list("web", "!other")


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not match_pattern("a" * 200, "*" * 50 + "b")


def test_words_end_at_a_comment_but_not_inside_a_word() -> None:
    assert split_words("a b#c #d") == ("a", "b#c")
    assert split_words(shlex.quote("a b")) == ("a b",)
    assert os.fspath(Path(split_words(r"a\ b")[0])) == "a b"
