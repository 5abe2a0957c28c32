"""Who is named when a node goes: against a directory that says what it is told, and real ports for the nodes."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from cai_dist.cluster import node_watch
from cai_dist.cluster.futures import Call, translate
from cai_dist.cluster.network_interface import VARIABLES, interface_of, use_interface
from cai_dist.cluster.node_watch import NodeWatch, WorkerAddress, WorkerRegistry
from cai_dist.errors import EXIT_RESUMABLE, ConfigError, NodeLost, WorkerDied

HEAD = "10.0.0.1:6379"


def listening() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@dataclass
class Directory:
    """A GCS with nodes a and b, whose raylets listen; `ask` answers as ray.nodes does."""

    raylets: dict[str, socket.socket] = field(default_factory=lambda: {"a": listening(), "b": listening()})
    dead: set[str] = field(default_factory=set)
    broken: bool = False
    on_ask: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.ports = {name: server.getsockname()[1] for name, server in self.raylets.items()}

    def ask(self) -> list[dict[str, Any]]:
        self.on_ask()
        if self.broken:
            raise ConnectionError("no GCS")
        return [
            {"NodeID": name, "Alive": name not in self.dead, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in self.ports.items()
        ]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    monkeypatch.setattr(node_watch, "CALM_SECONDS", 1.0)
    found = Directory()
    yield found
    for server in found.raylets.values():
        server.close()


@pytest.fixture
def watch(directory: Directory) -> Iterator[NodeWatch]:
    found = NodeWatch(HEAD, directory.ask, period=0.02)
    yield found
    found.stop()


@pytest.fixture
def roster() -> WorkerRegistry:
    """Two ranks of the policy, on a and b, and a rollout worker on a."""
    found = WorkerRegistry(versions={"policy": 3})
    for post in (
        WorkerAddress("policy", 0, "10.0.0.1", "a"),
        WorkerAddress("policy", 1, "10.0.0.2", "b"),
        WorkerAddress("rollout", 0, "10.0.0.1", "a"),
    ):
        found.enter(post)
    return found


def call(roster: WorkerRegistry | None, role: str = "policy", rank: int = 0, phase: str = "update") -> Call:
    return Call(None, phase, role, rank, "10.0.0.1", roster)


def test_the_lost_nodes_worker_is_named_and_not_the_survivor(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry
) -> None:
    assert watch.explain([call(roster)], 5) is None
    directory.dead.add("b")
    lost = watch.explain([call(roster)], 5)
    assert lost is not None and lost.exit_code == EXIT_RESUMABLE == 75
    assert str(lost) == (
        "phase update: policy[1] on 10.0.0.2, weight version 3: the node is gone; go on with the same command "
        "(exit code 75)"
    )
    again = pickle.loads(pickle.dumps(lost))
    assert type(again) is NodeLost and str(again) == str(lost)


def test_a_worker_that_is_waited_for_is_named_before_others_of_its_node(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry
) -> None:
    directory.dead.add("a")
    lost = watch.explain([call(roster, "policy", 1), call(roster, "rollout", 0, "generate")], 5)
    assert lost is not None and (lost.role, lost.rank, lost.phase, lost.weight_version) == (
        "rollout",
        0,
        "generate",
        -1,
    )


def test_during_a_wait_a_node_counts_that_the_call_does_not_run_on(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry
) -> None:
    waiting = [call(roster, "rollout", 0, "generate")]
    assert watch.loss(waiting) is None
    directory.dead.add("b")
    watch.explain([call(WorkerRegistry())], 0)  # an answer later than the death
    lost = watch.loss(waiting)
    assert lost is not None and (lost.phase, lost.role, lost.rank) == ("generate", "policy", 1)
    assert watch.loss([call(None)]) is None and watch.loss([call(roster).alone()]) is None
    roster.leave("policy")
    assert watch.loss(waiting) is None


def test_a_silent_node_is_held_against_the_directory_until_patience_ends(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry
) -> None:
    directory.raylets["b"].close()
    lost = watch.explain([call(roster)], 0)
    assert lost is not None and lost.rank == 1 and "does not answer" in lost.cause
    # The directory knows a moment later: its word is what is passed on.
    asked = 0

    def learn() -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            directory.dead.add("b")

    directory.on_ask = learn
    lost = watch.explain([call(roster)], 30)
    assert lost is not None and lost.rank == 1 and "the node is gone" in lost.cause


def test_a_raylet_that_ends_after_its_workers_is_waited_for(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry
) -> None:
    began = time.monotonic()

    def end() -> None:
        if time.monotonic() - began > 0.6:
            directory.raylets["b"].close()

    directory.on_ask = end
    lost = watch.explain([call(roster)], 1.5)
    assert lost is not None and (lost.rank, lost.node) == (1, "10.0.0.2")


def test_a_head_that_does_not_answer_is_named(
    directory: Directory, watch: NodeWatch, roster: WorkerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.explain([call(roster)], 0)
    directory.broken = True
    monkeypatch.setattr(node_watch, "HEAD_SECONDS", 0.1)
    deadline = time.monotonic() + 30
    while not watch.headless:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lost = watch.loss([call(None)])
    assert lost is not None and lost.exit_code == 75
    assert str(lost).startswith(f"phase update: head on {HEAD}: the head of the Ray cluster has not answered")


@pytest.fixture
def joined(watch: NodeWatch, roster: WorkerRegistry, monkeypatch: pytest.MonkeyPatch) -> NodeWatch:
    """The watch over the cluster that this process is part of; it has had an answer."""
    watch.explain([call(roster)], 0)
    monkeypatch.setattr(node_watch, "_current", watch)
    monkeypatch.setattr(node_watch, "HEAD_SECONDS", 0.5)
    return watch


def fails() -> None:
    raise GetTimeoutError("There was timeout in removing the placement group")


@pytest.mark.parametrize("question", [lambda: threading.Event().wait(60), fails], ids=["blocks", "fails"])
def test_a_question_to_a_head_that_is_gone_names_it(
    question: Callable[[], None], directory: Directory, joined: NodeWatch
) -> None:
    directory.broken = True
    began = time.monotonic()
    with pytest.raises(NodeLost, match=f"phase end: head on {HEAD}"):
        node_watch.ask_head("end", question)
    assert time.monotonic() - began < 30


def test_a_question_to_a_head_that_is_there(joined: NodeWatch) -> None:
    assert node_watch.ask_head("end", lambda: 7) == 7
    with pytest.raises(GetTimeoutError, match="removing"):
        node_watch.ask_head("end", fails)


def test_what_the_question_itself_says_is_not_doubted(directory: Directory, joined: NodeWatch) -> None:
    def refuse() -> None:
        raise ConfigError("the cluster could never hold that")

    directory.broken = True
    with pytest.raises(ConfigError, match="never hold"):
        node_watch.ask_head("start", refuse)


def test_without_a_watch_the_question_is_asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watch, "_current", None)
    assert node_watch.ask_head("end", threading.current_thread) is threading.current_thread()


def test_rays_words_on_the_end_of_a_process_are_in_the_line() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerHost\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End "
        "of file. Some common causes include: (1) this and that."
    )
    error = translate(call(None), _Said(text))
    assert isinstance(error, WorkerDied) and not isinstance(error, NodeLost)
    assert error.cause.startswith("the worker process died: The actor is dead because its worker process has died.")
    assert error.cause.endswith("End of file.") and "pid" not in error.cause and error.exit_code == 1
    gone = translate(call(None), _Said("x\nThe actor died because its node has died. Node Id: 12"))
    assert isinstance(gone, NodeLost) and gone.exit_code == 75
    away = translate(call(None), ActorUnavailableError("RPC error: Connection refused", None))
    assert isinstance(away, WorkerDied) and "Connection refused" in away.cause and "\n" not in str(away)


class _Said(ActorDiedError):
    """A death in the words that Ray would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __str__(self) -> str:
        return self._text


def test_collectives_take_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {
        "lo": ["127.0.0.1", "::1"],
        "eno1": ["a0:36:9f:00:00:01", "192.168.1.5"],
        "ib0": ["10.4.0.7", "10.5.0.7", "fe80::1%ib0"],
    }
    monkeypatch.setattr(
        "psutil.net_if_addrs", lambda: {name: [_Address(a) for a in given] for name, given in addresses.items()}
    )
    assert interface_of("192.168.1.5") == "eno1"
    assert interface_of("10.5.0.7") == interface_of("fe80::1") == "ib0"
    assert interface_of("127.0.1.3") == interface_of("::1") == "lo"
    assert interface_of("10.9.9.9") is None
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine")
    use_interface("10.9.9.9")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface("10.4.0.7")
    assert [os.environ[name] for name in VARIABLES] == ["ib0", "mine"]
    del os.environ["GLOO_SOCKET_IFNAME"]  # monkeypatch would put it back


@dataclass(frozen=True)
class _Address:
    address: str
