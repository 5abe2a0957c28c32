"""One Slurm for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, missing_daemons


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Two nodes. In a short path: the socket of munge has 107 bytes for it."""
    if missing := missing_daemons():
        pytest.skip(f"no {', '.join(missing)}: `make test-cluster` installs Slurm (Debian, Ubuntu)")
    if not (Path(sys.prefix) / "bin" / "ray").exists():
        pytest.skip(f"the scripts need a virtual environment with Ray; {sys.prefix} has none")
    cluster = SlurmCluster(Path(tempfile.mkdtemp(prefix="cai-slurm-")), nodes=2)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(cluster.base, ignore_errors=True)
