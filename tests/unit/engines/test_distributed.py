"""The rendezvous store of a worker group."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cai_dist.distributed.process_group import open_store


def test_the_store_serves_at_its_address_and_at_no_other() -> None:
    port = open_store("127.0.0.1", 20.0)
    client = TCPStore("127.0.0.1", port, None, is_master=False, timeout=timedelta(seconds=20))
    client.set("key", "value")
    assert client.get("key") == b"value"
    # another address of this machine: the port is free there, so nothing listens on all interfaces
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
