"""The flags with which a command limits the visitors of its listeners."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, get_args

import click

from rtunnel.addresses import Bind, Target, UnixBind
from rtunnel.policy import Policy, Priority
from rtunnel.services import Service, SocksService

# As curl --limit-rate and RekeyLimit of ssh_config(5) have them.
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_RATE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)", re.ASCII | re.IGNORECASE)


def _read_rate(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> int | None:
    if text is None:
        return None
    match = _RATE.fullmatch(text)
    if match is None or (rate := int(float(match[1]) * _UNITS[match[2].upper()])) < 1:
        why = f"{text!r} is no rate: expected bytes per second, as 500K or 10M"
        raise click.BadParameter(why, context, parameter)
    return rate


_OPTIONS: Final = (
    click.option(
        "--allow",
        metavar="NETWORK",
        multiple=True,
        help="Take visitors from this address or network, and no others. Repeatable.",
    ),
    click.option(
        "--deny",
        metavar="NETWORK",
        multiple=True,
        help="Take no visitors from this address or network. Repeatable.",
    ),
    click.option(
        "--max-connections",
        metavar="N",
        type=click.IntRange(min=1),
        help="So many at a time for each forward.",
    ),
    click.option(
        "--rate",
        "rate_bytes_per_s",
        metavar="BYTES[K|M|G]",
        callback=_read_rate,
        help="Bytes per second for each forward, in each direction.",
    ),
    click.option(
        "--idle-timeout",
        "idle_timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Reset a connection on which nothing moves for so long.",
    ),
    click.option(
        "--connect-timeout",
        "connect_timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="How long a target may take to answer.",
    ),
    click.option(
        "--priority",
        type=click.Choice(get_args(Priority)),
        help="Who goes first where forwards share the connection.",
    ),
    click.option(
        "--proxy-protocol",
        type=click.Choice(["1", "2"]),
        help="Tell targets who the visitor is, by a PROXY header of this version.",
    ),
    click.option(
        "--permit-open",
        metavar="HOST:PORT",
        multiple=True,
        help="What visitors of a SOCKS forward may reach; * for any. Repeatable.",
    ),
)
# For the targets of which kind a rule is; the others are for all.
_ONLY_FOR: Final[dict[str, Callable[[Target | Service], bool]]] = {
    "permit_open": lambda target: isinstance(target, SocksService),
    "proxy_protocol": lambda target: not isinstance(target, Service),
}


def visitor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these flags; it passes what it gets for them to `rules_for`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def rules_for(
    forwards: Sequence[tuple[Bind, Target | Service]], given: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what `Tunnel.listen` is given for each forward.

    Raises click.UsageError for a rule that makes no sense, or that no target has a
    use for.
    """
    targets = [target for _, target in forwards]
    rules = {
        name: value
        for name, value in given.items()
        if value is not None and value != ()
    }
    if "proxy_protocol" in rules:
        rules["proxy_protocol"] = int(rules["proxy_protocol"])
    for name, is_for in _ONLY_FOR.items():
        if name in rules and not any(map(is_for, targets)):
            flag = "--" + name.replace("_", "-")
            wanted = "a SOCKS forward" if name == "permit_open" else "a target"
            raise click.UsageError(f"{flag} is for {wanted}, and there is none")
    has_unix_bind = any(isinstance(bind, UnixBind) for bind, _ in forwards)
    if has_unix_bind and ("allow" in rules or "deny" in rules):
        raise click.UsageError(
            "visitors of a Unix socket have no address: --allow and --deny cannot be "
            "kept for it"
        )
    try:
        Policy.of(**rules)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return [
        {
            name: value
            for name, value in rules.items()
            if name not in _ONLY_FOR or _ONLY_FOR[name](target)
        }
        for target in targets
    ]
