"""What Ray starts in the place of a worker that is a fork: `python -I forked_worker.py SOCKET SCRIPT ARGUMENTS`.

It asks the fork server (fork_server.py) behind SOCKET for a process that runs the script, and ends as that does. It is
run by its path and imports next to nothing: it is there once for every worker. Where nobody answers, it becomes the
worker itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys

LENGTH_BYTES = 8
"""Size of the number in front of a request: how many bytes follow."""
FORKED = b"f"
"""First byte of the answer: the process is there. What follows is its exit code, in decimal digits."""


def main(path: str, command: list[str]) -> int:
    """The exit code of the worker."""
    answer = _asked(path, command)
    if answer is None:
        os.execv(sys.executable, [sys.executable, *command])
    digits = b""
    while part := answer.recv(16):
        digits += part
    return int(digits) if digits else 1  # the server is gone, and its forks with it


def _asked(path: str, command: list[str]) -> socket.socket | None:
    """The connection on which the end will be told; None where there is no fork."""
    request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        socket.send_fds(server, [len(request).to_bytes(LENGTH_BYTES, "big")], [0, 1, 2])
        server.sendall(request)
        return server if server.recv(1) == FORKED else None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
