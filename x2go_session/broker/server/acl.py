"""Who is offered a profile: allow and deny lists of users, groups and clients. Pure.

The rules are those of x2gobroker's profiles, so that its files mean here what they
mean there:

- A profile with lists of clients is for those that they allow, and nobody else.
- A profile without lists of users and groups is for all users.
- A user who is allowed by name is not asked for groups.
- A user who is denied by name is not let in by a group.
- Where both lists have a match, the order says which is looked at first.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

ALL: Final = "ALL"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Order(enum.StrEnum):
    """Which list is looked at first; its word counts."""

    ALLOW_DENY = "allow-deny"
    DENY_ALLOW = "deny-allow"


@dataclass(frozen=True, slots=True)
class Rule:
    """Two lists of names, and their order. `ALL` in a list is everybody."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    order: Order = Order.DENY_ALLOW

    def __bool__(self) -> bool:
        return bool(self.allow or self.deny)

    def verdict(self, names: Collection[str]) -> bool | None:
        """Say whether one who has these names is allowed; None: in neither list."""
        allowed = ALL in self.allow or not set(self.allow).isdisjoint(names)
        denied = ALL in self.deny or not set(self.deny).isdisjoint(names)
        return _verdict(allowed, denied, self.order)


@dataclass(frozen=True, slots=True)
class ClientRule:
    """Two lists of networks, and their order."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    order: Order = Order.DENY_ALLOW

    def __bool__(self) -> bool:
        return bool(self.allow or self.deny)

    def verdict(self, client: str) -> bool | None:
        """Say whether a client of this address is allowed; None: in neither list."""
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        allowed = any(address in network for network in self.allow)
        denied = any(address in network for network in self.deny)
        return _verdict(allowed, denied, self.order)


@dataclass(frozen=True, slots=True)
class Acl:
    """The rules of one profile."""

    users: Rule = Rule()
    groups: Rule = Rule()
    clients: ClientRule = ClientRule()

    def allows(self, user: str, groups: Collection[str], client: str) -> bool:
        """Say whether a user, who is in these groups, is offered it at this address."""
        if self.clients and self.clients.verdict(client) is not True:
            return False
        if not self.users and not self.groups:
            return True
        by_user = self.users.verdict((user,)) if self.users else None
        if by_user is not None:
            return by_user
        return self.groups.verdict(groups) is True


def networks(text: str) -> tuple[Network, ...]:
    """Return what an entry of a list of clients stands for. Raises ValueError."""
    if text == ALL:
        return ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")
    try:
        return (ipaddress.ip_network(text, strict=False),)
    except ValueError:
        raise ValueError(
            f"{text!r} is no address, no network (10.1.0.0/16) and not {ALL}"
        ) from None


def _verdict(allowed: bool, denied: bool, order: Order) -> bool | None:
    if allowed and denied:
        return order is Order.ALLOW_DENY
    return True if allowed else False if denied else None
