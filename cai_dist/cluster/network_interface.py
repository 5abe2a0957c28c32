"""The network interface that collectives between hosts use: the one with the address by which Ray knows the node.

Left alone, gloo takes the address that the host's name resolves to (on many machines a loopback one) and NCCL the first
interface that it likes; on hosts with several networks neither need lead to the other hosts.
"""

from __future__ import annotations

import ipaddress
import os

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Name of the interface of this machine that has `address`; None where none has."""
    wanted = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            try:
                found = ipaddress.ip_address(one.address.partition("%")[0])
            except ValueError:  # a hardware address
                continue
            # All of 127.0.0.0/8 is the loopback interface's, one address of it is listed.
            if found == wanted or found.is_loopback and wanted.is_loopback and found.version == wanted.version:
                return name
    return None


def use_interface(address: str) -> None:
    """Have the collectives of this process use the interface with `address`, where the user has not chosen one. Before
    the first process group."""
    name = interface_of(address)
    for variable in VARIABLES if name is not None else ():
        os.environ.setdefault(variable, str(name))
