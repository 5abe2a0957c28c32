"""docs/servers.md says what becomes of what servers do: each row is tried here."""

from __future__ import annotations

import pytest

from .server_page import PAGE, ROWS, page
from .test_endpoint import _no_proxy

__all__ = ["_no_proxy"]  # a fixture of the other file, for every test of this one


@pytest.fixture(scope="module")
def made() -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        return page()


@pytest.mark.slow
def test_the_page_of_servers_is_up_to_date(made: str) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == made, "run: python -m tests.unit.stages.server_page"


def test_every_behaviour_has_a_label_a_line_or_a_count(made: str) -> None:
    rows = [line.split(" | ") for line in made.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(ROWS) >= 25
    ends = {"label", "refused at the first question", "one pair", "ends the run"}
    assert {row[3] for row in rows} == ends
    assert all(row[4].strip(" |") for row in rows)
    assert "\x1b" not in made
