"""X2GoClient has every name of python-x2go's, with its arguments and defaults.

`data/x2go_client_api.txt` has them, a signature a line, as python-x2go 0.5 documents
them. The one default that differs there is a folder of the machine on which that
documentation was made: `pulseaudio` below its working directory.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import x2go_session as x2go
from tests.support.x2go_client_api import NAMES, NOT_DRIVEN, SIGNATURES, driven

WINDOWS_ONLY = (
    "HOOK_no_installed_xservers_found",
    "HOOK_no_known_xserver_found",
    "HOOK_pulseaudio_not_supported_in_RDPsession",
    "HOOK_pulseaudio_server_died",
    "HOOK_pulseaudio_server_startup_failed",
)
ALIASES = {
    "get_server_components": "get_server_versions",
    "get_session_profiles": "get_profiles",
    "profile_get_published_applications": "get_published_applications",
    "profile_get_shared_folders": "get_shared_folders",
    "profile_master_session": "get_master_session",
    "session_get_shared_folders": "get_shared_folders",
    "unshare_all_local_folders_from_profile": "unshare_all_local_folders",
    "unshare_all_local_folders_from_session": "unshare_all_local_folders",
    "unshare_local_folder_from_profile": "unshare_local_folder",
    "unshare_local_folder_from_session": "unshare_local_folder",
    "with_profile_config": "get_profile_config",
    "with_session": "get_session",
}
EXCEPTIONS = re.findall(r"\w+", """
    X2GoClientException X2GoClientPrintingException X2GoClientSettingsException
    X2GoSessionException X2GoControlSessionException X2GoSFTPClientException
    X2GoRemoteHomeException X2GoHostKeyException X2GoSSHProxyPasswordRequiredException
    X2GoSSHProxyHostKeyException X2GoTerminalSessionException X2GoSessionCacheException
    X2GoUserException X2GoProfileException X2GoSessionRegistryException
    X2GoFwTunnelException X2GoRevFwTunnelException X2GoPrintException
    X2GoPrintQueueException X2GoPrintActionException X2GoProxyException
    X2GoMIMEboxActionException X2GoMIMEboxQueueException X2GoSSHProxyException
    X2GoSSHProxyAuthenticationException X2GoNotImplementedYetException
    X2GoDesktopSharingException X2GoDesktopSharingDenied X2GoTimeOutException
    X2GoBrokerConnectionException X2GoTelekinesisClientException X2GoBackendException
""")  # fmt: skip


def shape(signature: inspect.Signature) -> list[tuple[str, object, object]]:
    """What a caller sees: names, kinds and defaults, without `self`."""
    return [
        (each.name, each.kind, each.default)
        for each in signature.parameters.values()
        if each.name != "self"
    ]


def documented(text: str) -> list[tuple[str, object, object]]:
    """The same of a signature as text."""
    function = ast.parse(f"def {text}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    given, defaults = function.args, function.args.defaults
    bare = len(given.args) - len(defaults)
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found: list[tuple[str, object, object]] = [
        (
            each.arg,
            plain,
            inspect.Parameter.empty
            if at < bare
            else ast.literal_eval(defaults[at - bare]),
        )
        for at, each in enumerate(given.args)
    ]
    if given.kwarg:
        more = inspect.Parameter.VAR_KEYWORD
        found.append((given.kwarg.arg, more, inspect.Parameter.empty))
    return found


def test_the_table_has_all_hooks_and_methods() -> None:
    hooks = [name for name in SIGNATURES if name.startswith("HOOK_")]
    attributes = set(NAMES) - set(SIGNATURES)
    assert len(hooks) == 33
    assert len(SIGNATURES) - len(hooks) - 1 == 110
    assert len(attributes) == 8


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_method_has_its_arguments_and_defaults(name: str) -> None:
    found = x2go.X2GoClient if name == "X2GoClient" else getattr(x2go.X2GoClient, name)
    assert shape(inspect.signature(found)) == documented(SIGNATURES[name])


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SIGNATURES)))
def test_an_attribute_is_there(name: str, tmp_path: Path) -> None:
    with x2go.X2GoClient(client_rootdir=str(tmp_path)) as client:
        value = getattr(client, name)
    if name == "lang":
        assert value == "en"
    elif name == "has_custom_client_rootdir":
        assert value is True
    else:
        assert value in ([], False)


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_an_alias_is_the_method_itself(alias: str, name: str) -> None:
    assert getattr(x2go.X2GoClient, alias) is getattr(x2go.X2GoClient, name)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_one_that_except_exception_catches(name: str) -> None:
    assert issubclass(getattr(x2go, name), Exception)
    assert issubclass(getattr(x2go, name), x2go.X2GoException)


@pytest.mark.parametrize("name", WINDOWS_ONLY)
def test_what_is_for_windows_says_so(name: str, tmp_path: Path) -> None:
    from x2go_session.errors import NotSupported

    with (
        x2go.X2GoClient(client_rootdir=str(tmp_path)) as client,
        pytest.raises(NotSupported, match="Windows"),
    ):
        getattr(client, name)()


@pytest.mark.parametrize("argument", ["start_xserver", "start_pulseaudio"])
def test_starting_servers_is_for_windows(argument: str) -> None:
    from x2go_session.errors import NotSupported

    with pytest.raises(NotSupported, match="Windows"):
        x2go.X2GoClient(**{argument: True})


def test_another_backend_is_refused_with_the_one_that_there_is() -> None:
    with pytest.raises(x2go.X2GoBackendException, match="NX3"):
        x2go.X2GoClient(proxy_backend="NX4")


def test_every_name_is_driven_or_says_why_not() -> None:
    """By the tests that use the real server; see `support/x2go_client_api.py`."""
    names = set(SIGNATURES) - {"X2GoClient"} - set(WINDOWS_ONLY)
    assert names - driven() - set(NOT_DRIVEN) == set()
    assert set(NOT_DRIVEN) & driven() == set()


def test_the_page_tells_of_every_name() -> None:
    page = (Path(__file__).parent.parent / "docs" / "x2go-client.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []
