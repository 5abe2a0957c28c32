"""Becoming a driver of a Ray cluster that is up: with a deadline, and with an answer where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import ray
from ray.exceptions import RayError

from cai_dist.errors import ConfigError

_JOIN_SECONDS = 60.0


def join(address: str, **options: Any) -> None:
    """`ray.init` at `auto` or host:port. Raises ConfigError where no cluster answers: at once for a port that is
    closed, within a minute for any other."""
    where = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    host, _, port = where.rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=5).close()
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a job of Ray's: who started this process is there
            _rehearse(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        line = " ".join(str(error).split())[-300:]
        raise ConfigError(f"{where}: cannot be joined: {line}") from error


def _rehearse(address: str) -> None:
    """Join in a process that can be given up: against a port that is not Ray's, `ray.init` tries for many minutes, and
    after others it ends its process. Raises RuntimeError."""
    code = "import logging, sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_JOIN_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"something listens there, but no Ray head within {_JOIN_SECONDS:.0f} s") from None
    if "InvalidAuthToken" in done.stderr:
        raise RuntimeError("it refuses our token, or that we have none")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
