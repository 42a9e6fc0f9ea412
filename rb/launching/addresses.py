"""Addresses of this host, as other nodes of a job reach it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

import psutil


def controller_addresses(hosts: Iterable[str]) -> tuple[str, ...]:
    """IPv4 addresses of this host that route to other hosts, the likeliest first; the loopback's where all are this host.

    Args:
        hosts: names or addresses; one that only ssh can resolve (an alias) is left out.
    """
    known = list(hosts)
    routes = []
    for host in known:
        with suppress(OSError):
            routes.append(route_to(host, family=socket.AF_INET))
    found = [address for address in dict.fromkeys(routes) if not address.startswith("127.")]
    if found:
        return tuple(found)
    own = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    others = [address for address in own if not address.startswith("127.")]
    if routes and len(routes) == len(known):
        return ("127.0.0.1",)
    return tuple(others) or ("127.0.0.1",)


def route_to(host: str, port: int = 9, family: int = socket.AF_UNSPEC) -> str:
    """The address of this host from which packets to another one would leave; sends nothing. ``OSError`` where no way is known."""
    found, _, _, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0]
    with socket.socket(found, socket.SOCK_DGRAM) as probe:  # of a datagram socket "connect" only chooses a route
        probe.connect(address)
        return str(probe.getsockname()[0])
