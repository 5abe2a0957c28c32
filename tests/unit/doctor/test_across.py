"""What nodes must have in common."""

from __future__ import annotations

from dataclasses import replace

from cai_dist.doctor.across import (
    ClockReading,
    check_all_reduce,
    check_clocks,
    check_reach,
    check_same,
    check_shared,
    check_tokens,
)
from cai_dist.doctor.checks import Check
from cai_dist.doctor.facts import NodeFacts

DRIVER = NodeFacts("this machine", {"python": "3.11.9", "torch": "2.13.0"}, "c0de", token="aa")
A, B = replace(DRIVER, node="a"), replace(DRIVER, node="b")


def test_a_node_with_other_software_is_named_with_what_differs() -> None:
    assert [row.state for row in check_same(DRIVER, [A, B])] == ["ok"]
    rows = list(check_same(DRIVER, [A, replace(B, versions={"python": "3.11.9"}, code="beef")]))
    assert [(row.node, row.state) for row in rows] == [("b", "fail")]
    assert rows[0].found == "torch missing (here 2.13.0), code of cai_dist beef (here c0de)"
    assert "the same checkout" in rows[0].advice


def test_tokens() -> None:
    def off(facts: NodeFacts) -> NodeFacts:
        return replace(facts, token="", environment={"RAY_AUTH_MODE": "disabled"})

    assert check_tokens(DRIVER, [A, B]) == Check("all", "authentication", "token aa")
    half = check_tokens(DRIVER, [A, off(B)])
    assert half.state == "warn" and half.found == "disabled / token aa" and "for the head, every node" in half.advice
    two = check_tokens(DRIVER, [A, replace(B, token="bb")])
    assert two.state == "warn" and "RAY_AUTH_TOKEN" in two.advice
    # One machine may do without; several are open to whoever reaches them.
    assert check_tokens(off(DRIVER), [off(A)]).state == "ok"
    assert "can run code" in check_tokens(off(DRIVER), [off(A), off(B)]).advice


def test_the_round_trip_is_no_skew() -> None:
    # Ours 100 and 104, theirs 102: no offset at all. A second reading says +0.3 with less doubt.
    slow, quick = ClockReading(100.0, 102.0, 104.0), ClockReading(200.0, 200.4, 200.2)
    assert (slow.offset, slow.doubt) == (0.0, 2.0)
    assert [row.found for row in check_clocks({"a": [slow, quick]})] == ["at most 0.300 s apart"]
    # 3 s ahead by the middle, but the answer may have been read at any moment of 6 s.
    assert [row.state for row in check_clocks({"a": [ClockReading(0.0, 6.0, 6.0)]})] == ["ok"]
    ahead = list(check_clocks({"a": [ClockReading(0.0, 2.1, 0.2)], "b": [quick]}))
    assert [(row.node, row.state, row.found) for row in ahead] == [
        ("a", "warn", "+2.0 s from here (round trip 0.200 s)")
    ]
    assert "chrony" in ahead[0].advice
    behind = list(check_clocks({"a": [ClockReading(10.0, 8.5, 10.2)]}))
    assert behind[0].found.startswith("-1.6 s")


def test_a_folder_that_is_not_shared() -> None:
    rows = list(check_shared("run folder", "/r", {"a": "", "b": "1 of 2 files not seen in 10 s"}, 0.1))
    assert [(row.node, row.name, row.state) for row in rows] == [("b", "shared run folder", "fail")]
    assert "mount the shared disk there" in rows[0].advice and "/r" in rows[0].found
    assert [(row.node, row.state) for row in check_shared("x", "/r", {"a": "", "b": ""}, 0.1)] == [("all", "ok")]


def test_a_closed_port() -> None:
    rows = list(check_reach({("a", "b"): "timed out", ("b", "a"): ""}))
    assert [(row.node, row.found, row.state) for row in rows] == [("a", "to b: timed out", "fail")]
    assert "open all ports above 1023" in rows[0].advice
    assert [row.state for row in check_reach({("a", "b"): ""})] == ["ok"]
    assert list(check_reach({})) == []


def test_an_all_reduce_names_the_ranks_that_failed() -> None:
    row = check_all_reduce("gloo all-reduce", "all", 2, ["", "hangs (on b)"])
    assert (row.state, row.found) == ("fail", "rank 1: hangs (on b)")
    assert "GLOO_SOCKET_IFNAME" in row.advice
    assert "NCCL_DEBUG" in check_all_reduce("NCCL all-reduce", "all", 2, ["x", ""]).advice
    assert check_all_reduce("gloo all-reduce", "all", 2, ["", ""]).state == "ok"
