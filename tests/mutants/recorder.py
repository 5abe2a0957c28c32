"""A pytest plugin that writes down what became of each test, and which `cai_dist` was tested."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

RECORD = "CAI_DIST_MUTANT_RECORD"
"""Environment variable with the file to write."""
_reports: list[dict[str, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    error = call.excinfo
    _reports.append(
        {
            "test": item.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "error": error.typename if error else "",
            "message": str(error.value)[:2000] if error else "",
        }
    )
    return report


def pytest_sessionfinish() -> None:
    package = getattr(sys.modules.get("cai_dist"), "__file__", None)
    Path(os.environ[RECORD]).write_text(json.dumps({"package": package, "reports": _reports}), encoding="utf-8")
