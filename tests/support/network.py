"""Ports and addresses of this machine."""

from __future__ import annotations

import socket

import psutil


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def other_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine by which others could reach it."""
    found = [one for cards in psutil.net_if_addrs().values() for one in cards]
    return [
        one.address
        for one in found
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]
