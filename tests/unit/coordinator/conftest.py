"""Fixtures of the coordinator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.coordinator.small_run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")
