"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the long tests of clusters (`make test-cluster`)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="a long test of a real cluster: `make test-cluster` runs it (pytest --full)")
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(skip)
