"""The work queue against workers that fail by script, in a time of their own: nothing lost, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_dist.cluster.work_queue import Loss, WorkQueue
from cai_dist.errors import DataError, Interrupted, NodeLost, WorkerDied, WorkerError, WorkerTimeout

CALL, START = 100.0, 30.0
NEVER = 1e9


@dataclass(eq=False)
class Call:
    rank: int
    ends: float
    outcome: Any
    node: str = "here"


@dataclass
class FakeCrew:
    """Workers in a time of their own. `script(item, attempt)` gives (seconds, outcome) of a call, `starts(n)` those of
    the n-th start; an outcome that is an exception is raised."""

    workers: int
    script: Callable[[Any, int], tuple[float, Any]]
    starts: Callable[[int], tuple[float, Any]] = lambda n: (5.0, None)
    role: str = "revise"
    timeout: float = CALL
    start_timeout: float = START
    now: float = 0.0
    up: set[int] = field(default_factory=set)
    attempts: Counter[Any] = field(default_factory=Counter)
    given: list[tuple[int, Any]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.up = set(range(self.workers))

    @property
    def ranks(self) -> list[int]:
        return sorted(self.up)

    def call(self, rank: int, phase: str, method: str, item: Any) -> Call:
        assert rank in self.up, "a worker that is gone was given work"
        self.attempts[item] += 1
        self.given.append((rank, item))
        seconds, outcome = self.script(item, self.attempts[item])
        return Call(rank, self.now + seconds, outcome)

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        assert 0 <= timeout <= max(self.timeout, self.start_timeout) + 1e-6, "a wait without a bound"
        self.now = min(self.now + timeout, max(self.now, min(call.ends for call in calls)))
        return [call for call in calls if call.ends <= self.now]

    def result(self, call: Call) -> Any:
        assert call.ends <= self.now
        if isinstance(call.outcome, Exception):
            raise call.outcome
        self.up.add(call.rank)
        return call.outcome

    def start_worker(self, rank: int) -> Call:
        assert rank not in self.up
        self.started.append(rank)
        seconds, outcome = self.starts(len(self.started))
        return Call(rank, self.now + seconds, outcome)

    def kill(self, rank: int) -> None:
        self.up.discard(rank)
        self.killed.append(rank)


def died(item: Any = "") -> WorkerDied:
    return WorkerDied(f"p, {item}", "revise", 1, "node-7", "the worker process died", detail="oom")


def items(n: int) -> dict[str, int]:
    return {f"shard {i}": i for i in range(n)}


def run(crew: FakeCrew, n: int, retries: int = 2, **hooks: Any) -> list[tuple[str, Any]]:
    return list(WorkQueue(crew, retries, clock=lambda: crew.now, **hooks).map("revise: answer", "generate", items(n)))


def ok(item: Any, attempt: int) -> tuple[float, Any]:
    return 1.0 + item % 3, f"r{item}"


def test_each_item_once_to_whoever_is_free() -> None:
    # Item 0 holds its worker for 10 s; the other one does 1 to 4 meanwhile.
    crew = FakeCrew(2, lambda item, _: (10.0 if item == 0 else 1.0, item * item))
    assert run(crew, 5) == [("shard 1", 1), ("shard 2", 4), ("shard 3", 9), ("shard 4", 16), ("shard 0", 0)]
    assert crew.given == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert run(FakeCrew(2, ok), 0) == []


def test_a_dead_workers_item_goes_to_another_and_a_new_worker_takes_its_place() -> None:
    losses: list[Loss] = []
    crew = FakeCrew(2, lambda item, attempt: (1.0, died() if (item, attempt) == (1, 1) else item))
    found = run(crew, 12, lost=losses.append)
    assert sorted(found) == sorted((f"shard {i}", i) for i in range(12))
    assert crew.killed == [1] and crew.started == [1]
    assert crew.given[2:4] == [(0, 1), (0, 2)], "first of all, and by the other worker"
    assert 1 in {rank for rank, _ in crew.given[4:]}, "the new one works"
    [loss] = losses
    assert (loss.role, loss.rank, loss.node, loss.restarts, loss.again) == ("revise", 1, "node-7", 1, True)
    assert "died" in loss.cause and "shard 1" in loss.cause


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_an_item_that_kills_every_worker_is_named(retries: int) -> None:
    got: list[str] = []
    crew = FakeCrew(3, lambda item, _: (1.0, died(item) if item == 1 else item))
    with pytest.raises(WorkerDied) as caught:
        for key, _ in WorkQueue(crew, retries, clock=lambda: crew.now).map("revise: answer", "m", items(4)):
            got.append(key)
    assert crew.attempts[1] == retries + 1 and len(crew.started) == retries
    line = str(caught.value)
    for part in ("revise: answer, shard 1", "revise[1] on node-7", f"given to {retries + 1} worker", "cluster.retries"):
        assert part in line, line
    assert "\n" not in line and caught.value.detail == "oom" and caught.value.exit_code == 1
    assert {"shard 0", "shard 2"} <= set(got), "what ended at the same time is not lost"
    assert len(got) == len(set(got))


@pytest.mark.parametrize("error", [DataError("x.jsonl:3: no"), WorkerError("p", "revise", 0, "n", "KeyError: 'x'")])
def test_what_a_worker_raises_ends_the_run_at_once(error: Exception) -> None:
    got = []
    crew = FakeCrew(2, lambda item, _: (1.0, error if item == 0 else item))
    with pytest.raises(type(error)) as caught:
        for key, _ in WorkQueue(crew, 5, clock=lambda: crew.now).map("p", "m", items(9)):
            got.append(key)
    assert caught.value is error and got == ["shard 1"]
    assert crew.attempts[0] == 1 and not crew.started and not crew.killed


def test_a_worker_that_misses_its_deadline_is_replaced_and_its_late_answer_dropped() -> None:
    # The first try would answer at 150 s, while item 2 runs; its worker is ended at 100 s.
    script = {0: [(150.0, "late"), (90.0, "good")], 1: [(99.0, "b")], 2: [(80.0, "c")]}
    crew = FakeCrew(2, lambda item, attempt: script[item][attempt - 1])
    losses: list[Loss] = []
    assert sorted(run(crew, 3, lost=losses.append)) == [("shard 0", "good"), ("shard 1", "b"), ("shard 2", "c")]
    assert crew.killed == [0] and "no answer within 100 s (cluster.timeouts.call)" in losses[0].cause


def test_one_that_always_hangs_is_a_timeout() -> None:
    crew = FakeCrew(1, lambda item, _: (NEVER, None))
    with pytest.raises(WorkerTimeout, match=r"revise: answer, shard 0: revise\[0\].*given to 2 workers"):
        run(crew, 1, retries=1)
    assert crew.now == pytest.approx(2 * CALL + 5.0)


def test_the_others_go_on_without_a_worker_that_does_not_come_up() -> None:
    losses: list[Loss] = []
    crew = FakeCrew(2, lambda item, n: (1.0, died() if (item, n) == (0, 1) else item), starts=lambda n: (NEVER, None))
    assert len(run(crew, 50, lost=losses.append)) == 50
    assert [loss.again for loss in losses] == [True, False]
    assert "timeouts.start" in losses[1].cause and crew.started == [0] and crew.killed == [0, 0]


@pytest.mark.parametrize("outcome", [(NEVER, None), (3.0, WorkerError("start", "revise", 0, "n", "no memory"))])
def test_no_worker_left_is_one_error_in_time(outcome: tuple[float, Any]) -> None:
    crew = FakeCrew(2, lambda item, _: (1.0, died()), starts=lambda n: outcome)
    with pytest.raises(WorkerError, match="phase start: revise.*(no memory|no answer within 30 s)"):
        run(crew, 9, retries=5)
    assert crew.now <= START + 5


def test_a_mistake_of_the_user_at_the_start_ends_the_run() -> None:
    crew = FakeCrew(2, lambda item, n: (1.0, died() if n == 1 else item), starts=lambda n: (1.0, DataError("no model")))
    with pytest.raises(DataError, match="no model"):
        run(crew, 9)


def test_a_run_that_is_to_stop_starts_no_worker() -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    crew = FakeCrew(2, lambda item, _: (1.0, died()))
    with pytest.raises(Interrupted):
        run(crew, 9, check=stop)
    assert not crew.started
    # And while the only worker comes up: within a second or so.
    crew = FakeCrew(1, lambda item, _: (1.0, died()), starts=lambda n: (20.0, None))

    def later() -> None:
        if crew.now > 5:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        run(crew, 1, check=later)
    assert crew.now < 8


def test_workers_come_and_go() -> None:
    crew = FakeCrew(3, lambda item, _: (10.0, item))
    queue = WorkQueue(crew, 0, clock=lambda: crew.now)
    results = queue.map("p", "m", items(12))
    got = [next(results)]
    queue.remove(1)  # busy: with retries=0 its item goes on, for it is no failure
    with pytest.raises(ValueError, match="no worker 1"):
        queue.remove(1)
    with pytest.raises(ValueError, match="there is a worker 2"):
        queue.add(2)
    got += [next(results), next(results), next(results)]
    assert {rank for rank, _ in crew.given[6:]} <= {0, 2}
    queue.add(1)
    got += results
    assert sorted(got) == sorted((f"shard {i}", i) for i in range(12))
    assert any(rank == 1 for rank, _ in crew.given[6:])


def test_a_queue_without_workers_says_so() -> None:
    crew = FakeCrew(1, ok)
    queue = WorkQueue(crew, 0, clock=lambda: crew.now)
    queue.remove(0)
    with pytest.raises(WorkerError, match="every worker has been removed"):
        list(queue.map("p", "m", items(1)))


def test_a_second_map_uses_the_workers_that_came_up_meanwhile() -> None:
    crew = FakeCrew(2, lambda item, n: (1.0, died() if (item, n) == (0, 1) else item))
    queue = WorkQueue(crew, 1, clock=lambda: crew.now)
    assert len(list(queue.map("p", "m", items(2)))) == 2
    crew.attempts.clear()
    assert len(list(queue.map("p", "m", items(40)))) == 40, "failures are counted for each map"
    assert {rank for rank, _ in crew.given[-10:]} == {0, 1} and queue.restarts == 2


def test_a_map_that_was_left_cannot_be_followed_by_another() -> None:
    crew = FakeCrew(2, ok)
    queue = WorkQueue(crew, 0, clock=lambda: crew.now)
    next(queue.map("p", "m", items(5)))
    with pytest.raises(RuntimeError, match="not run to its end"):
        list(queue.map("p", "m", items(5)))


FATES = st.sampled_from(["ok", "die", "hang", "late"])
FATE = {"die": lambda: (2.0, died()), "hang": lambda: (NEVER, None), "late": lambda: (CALL + 40.0, "late")}


@settings(max_examples=200)
@given(
    workers=st.integers(1, 4), n=st.integers(0, 12), retries=st.integers(0, 3),
    fates=st.lists(FATES, max_size=30), seconds=st.lists(st.floats(0.0, 99.0), min_size=1, max_size=10),
    start=st.lists(st.sampled_from([0.0, 5.0, 29.0]), min_size=1, max_size=4),
)  # fmt: skip
def test_whatever_fails_each_result_comes_once_or_an_item_is_named(
    workers: int, n: int, retries: int, fates: list[str], seconds: list[float], start: list[float]
) -> None:
    """Either every item comes exactly once with its own result, or one has lost `retries` + 1 workers; never fewer."""
    lost: Counter[Any] = Counter()
    left = iter(fates)

    def script(item: Any, attempt: int) -> tuple[float, Any]:
        fate = next(left, "ok")
        if fate == "ok":
            return seconds[(item + attempt) % len(seconds)], item * 7
        lost[item] += 1
        return FATE[fate]()

    crew = FakeCrew(workers, script, starts=lambda n: (start[n % len(start)], None))
    got: list[tuple[str, Any]] = []
    try:
        for pair in WorkQueue(crew, retries, clock=lambda: crew.now).map("p", "m", items(n)):
            got.append(pair)
    except WorkerError as error:
        [named] = [i for i in range(n) if f"p, shard {i}:" in str(error)]
        assert lost[named] == retries + 1
    else:
        assert len(got) == n
    assert all(value == int(key.split()[1]) * 7 for key, value in got)
    assert len({key for key, _ in got}) == len(got)
    assert max(lost.values(), default=0) <= retries + 1


def test_where_nodes_are_lost_and_no_other_has_room_the_run_can_be_gone_on_with() -> None:
    gone = NodeLost("p, 0", "revise", 0, "node-7", "the node is gone")
    crew = FakeCrew(1, lambda item, _: (1.0, gone), starts=lambda n: (NEVER, None))
    with pytest.raises(
        NodeLost, match=r"on node-7: the node is gone; no other node had room.*timeouts\.start"
    ) as caught:
        run(crew, 2)
    assert caught.value.exit_code == 75
    # With room elsewhere it is a loss like any other.
    once = FakeCrew(2, lambda item, attempt: (1.0, gone if (item, attempt) == (0, 1) else item))
    assert len(run(once, 4)) == 4


def test_a_worker_whose_node_goes_while_it_starts_is_started_on_another() -> None:
    gone = NodeLost("p, 0", "revise", 0, "node-7", "the node is gone")
    losses: list[Loss] = []
    crew = FakeCrew(
        1, lambda item, attempt: (1.0, gone if (item, attempt) == (0, 1) else item),
        starts=lambda n: (2.0, gone if n <= 2 else None),
    )  # fmt: skip
    assert len(run(crew, 3, lost=losses.append)) == 3
    assert [loss.again for loss in losses] == [True] * 3 and crew.started == [0] * 3
    never = FakeCrew(1, lambda item, _: (1.0, gone), starts=lambda n: (2.0, gone))
    with pytest.raises(NodeLost):
        run(never, 3)
    assert len(never.started) < 10, "not for ever"
