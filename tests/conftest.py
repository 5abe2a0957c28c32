"""Options of the whole suite, and how its files are spread over processes."""

from __future__ import annotations

import os

# Before torch and Ray are imported: tests of tiny models gain nothing from more threads, and Ray's workers, nice by
# default, would lose against everything else on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

# A busy machine slows a test and fails none.
settings.register_profile("cai_dist", deadline=None)
settings.load_profile("cai_dist")

GIB_OF_A_PROCESS = 8
"""Memory that one process of the suite may need, with the workers that it starts."""
SHARING = ("integration/test_pipeline.py", "integration/test_dpo.py")
"""Files that share something costly and so belong in one process."""
LONGEST = (
    "correctness/test_mutants.py",
    *SHARING,
    "integration/test_reference_ppo.py",
    "integration/test_zero.py",
    "dry_gpu/test_dry_gpu.py",
    "integration/test_lora.py",
    "integration/test_expand.py",
)
"""Begun first, in this order, so that no process is left with a long one at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the long tests, and those of clusters")


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`."""
    memory = psutil.virtual_memory().total // 2**30
    return max(1, min(os.cpu_count() or 1, memory // GIB_OF_A_PROCESS, 8))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Files are dealt out whole (`-n`): their tests share fixtures."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="a long test: pytest --full runs it, and `make test-cluster` those of clusters")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)
    items.sort(key=lambda item: _turn(item.path))  # stable: within a file the order stays


class _ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "sharing" if file.endswith(SHARING) else file


def _turn(path: Path) -> int:
    """Rank of a file: the longest, the other integration tests, the rest."""
    name = f"{path.parent.name}/{path.name}"
    if name in LONGEST:
        return LONGEST.index(name)
    return len(LONGEST) + ("integration" not in path.parts)
