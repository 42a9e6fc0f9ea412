"""Addresses of this host, as other nodes of a job reach it."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import psutil


def controller_addresses(hosts: Iterable[str]) -> tuple[str, ...]:
    """IPv4 addresses of this host that route to other hosts, the likeliest first; the loopback's where all are this host.

    Args:
        hosts: names or addresses; one that only ssh can resolve (an alias) is left out.
    """
    known = list(hosts)
    routes = [address for host in known if (address := route_to(host))]
    found = [address for address in dict.fromkeys(routes) if not address.startswith("127.")]
    if found:
        return tuple(found)
    own = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    others = [address for address in own if not address.startswith("127.")]
    if routes and len(routes) == len(known):
        return ("127.0.0.1",)
    return tuple(others) or ("127.0.0.1",)


def route_to(host: str) -> str:
    """The address of this host from which packets to another one would leave; empty where the name is not known here. Sends nothing."""
    try:
        address = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_of(address: str) -> str:
    """Name of the interface that has an address of this host; empty where none has."""
    for name, each in psutil.net_if_addrs().items():
        if any(one.address == address for one in each):
            return name
    return ""
