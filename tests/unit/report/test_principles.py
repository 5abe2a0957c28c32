"""The table of principles in the report."""

from __future__ import annotations

import pytest

from cai_dist.report.principles import principles


def test_one_row_a_principle_and_nothing_unescaped() -> None:
    entry = {
        "n": 3, "order_agreement": 0.5, "position_bias": None, "entropy": 0.25, "mean_confidence": 0.75,
        "option_mass": 0.875,
    }  # fmt: skip
    page = "".join(principles({"principles": [{"id": "<b>law</b>", **entry}, {"id": "care", "n": 0}]}))
    assert "<b>" not in page and "&lt;b&gt;law" in page
    assert "<td>3</td><td>0.875</td><td>0.500</td><td>–</td><td>0.250</td><td>0.750</td>" in page
    assert page.count("<tr>") == 3


@pytest.mark.parametrize("found", [None, [], {}, {"principles": []}, {"principles": 3}])
def test_nothing_where_there_is_none(found) -> None:
    assert list(principles(found)) == []
