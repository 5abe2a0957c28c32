"""The doctor on a real cluster of one node: it asks the node, and one that does not answer is a row."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cai_dist.cluster.node_survey import Silence, Survey
from cai_dist.cluster.runtime import Cluster
from cai_dist.doctor import examine
from cai_dist.doctor.examiner import Examiner
from cai_dist.doctor.needs import Needs


class Stubborn(Examiner):
    """Answers nothing about itself."""

    def facts(self, *_: object) -> object:  # type: ignore[override]
        time.sleep(3600)

    def clock(self) -> float:
        raise ValueError("no clock")


def test_a_node_is_examined(cluster: Cluster, tmp_path: Path) -> None:
    needs = Needs(shared=(("folder", str(tmp_path)),))
    said: list[str] = []
    with Survey(Examiner) as survey:
        checks = examine.survey_checks(survey, needs, tmp_path / "cache", said.append)
    rows = {(check.name, check.node): check for check in checks}
    (node,) = (node.name for node in survey.nodes)
    assert [check for check in checks if check.state == "fail"] == []
    # The same checkout and environment, one clock, one disk, and a sum of two processes.
    for name in ("same software", "clock", "shared folder", "gloo all-reduce"):
        assert rows[name, "all"].state == "ok", name
    assert rows["versions", node].found == rows["versions", examine.HERE].found
    assert rows["gloo all-reduce", "all"].found == "2 processes: the sum is right"
    assert list(tmp_path.iterdir()) == [] and said[-1] == "gloo all-reduce of 2 processes"


def test_a_node_that_does_not_answer_is_a_failed_row(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "_START_SECONDS", 3.0)
    with Survey(Stubborn) as survey:
        (node,) = (node.name for node in survey.nodes)
        assert survey.ask("clock", {node: ()}, 150.0)[node] == Silence("ValueError: no clock")
        checks = examine.survey_checks(survey, Needs(), tmp_path, lambda _: None)
    failed = [check for check in checks if check.state == "fail"]
    assert [(check.node, check.found) for check in failed] == [(node, "no answer in time")]
    assert "can it import cai_dist" in failed[0].advice


class Mortal(Examiner):
    """Its process ends when it is asked for the time."""

    def clock(self) -> float:
        os._exit(1)


def test_a_process_that_dies_is_said_to_have_died(cluster: Cluster) -> None:
    with Survey(Mortal) as survey:
        (node,) = (node.name for node in survey.nodes)
        answer = survey.ask("clock", {node: ()}, 150.0)[node]
    assert answer == Silence("the node, or Ray's process there, died while it was asked")
