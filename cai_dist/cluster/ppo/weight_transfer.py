"""Weights from the ranks of the policy to the rollout workers: begin, buckets, finish - whole or not at all.

How the buckets travel is a backend (docs/transfer.md); the order of events, the versions and what a failure leaves
behind are the same for all. The driver passes references only. The number of calls follows from the number of buckets
(object_store) or of workers (the others), never from that of the parameters.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import ray

from cai_dist.cluster.futures import Call, gather
from cai_dist.cluster.group import WorkerGroup
from cai_dist.config.ppo import TransferBackend
from cai_dist.errors import ConfigError
from cai_dist.registry import Signature, find_object, is_path
from cai_dist.types import TensorSpec, WeightPlan

PHASE = "weight transfer"
_AHEAD = 2
Buckets = tuple[tuple[TensorSpec, ...], ...]


class _Shared(NamedTuple):
    """References of what every worker gets: pickling a manifest for each of hundreds takes the driver seconds."""

    manifest: Any
    terms: Any
    plan: Any


class WeightSend(Protocol):
    """A way of one's own (`ppo.transfer`) for buckets to travel."""

    def __call__(self, transfer: WeightTransfer, plan: WeightPlan, version: int, begun: list[Call]) -> None:
        """Bring every bucket of `plan` from the policy ranks to all rollout workers, by calls of their methods
        (`transfer.start_all` and `transfer.wait`); `begun`: the calls that open the transfer on the rollout workers,
        which must be waited for before they get anything."""
        ...


def find_send(path: str) -> WeightSend:
    """The way that `package.module:object` names. Raises ConfigError."""
    found: WeightSend = find_object(path, "ppo.transfer", Signature(("transfer", "plan", "version", "begun")))
    return found


class WeightTransfer:
    """Transfers between one pair of groups. A bucket holds at most `bucket_bytes` (a larger tensor goes alone);
    `collective` (seconds) bounds the waits of workers for each other. `engines_stay`: they never sleep, so that what
    they hold after one transfer is known before the next, without asking each of them again."""

    def __init__(
        self,
        policy: WorkerGroup,
        rollout: WorkerGroup,
        backend: str,
        bucket_bytes: int,
        collective: float,
        engines_stay: bool = False,
    ) -> None:
        self.policy, self.rollout = policy, rollout
        self._bucket_bytes, self._collective = bucket_bytes, collective
        send: dict[TransferBackend, Callable[[WeightPlan, int, list[Call]], None]] = {
            "object_store": self._through_store,
            "broadcast": self._by_broadcast,
            "shared_memory": self._by_shared_memory,
            "cuda_ipc": self._by_cuda_ipc,
        }
        self._send = partial(find_send(backend), self) if is_path(backend) else send[cast(TransferBackend, backend)]
        self._connected, self._calls = False, 0
        self._engines_stay = engines_stay
        self._held: list[str | None] | None = None
        self._put: tuple[WeightPlan, _Shared] | None = None
        self._mapped: Buckets | None = None
        nodes = policy.nodes | rollout.nodes
        if backend == "shared_memory" and len(nodes) > 1:
            raise ConfigError(
                "ppo.transfer=shared_memory: policy and rollout must be on one node but are on "
                f"{', '.join(sorted(nodes))}; set ppo.transfer to object_store or broadcast"
            )

    def run(self, version: int) -> dict[str, float]:
        """Give every rollout worker the policy's weights as `version`.

        Returns {"seconds", "bytes" (of one copy of what travels), "calls" (remote ones)}.

        Raises: WorkerError or WorkerTimeout. The rollout workers that had begun then stay stale: they serve nothing
            until a later transfer has finished, which sends them everything.
        """
        start, self._calls = time.monotonic(), 0
        held, self._held = self._held or self.everywhere(self.rollout, "weights_held"), None
        plan: WeightPlan = self.wait([self.start(self.policy, 0, "weight_plan", self._bucket_bytes, held)])[0]
        shared = self._shared(plan)
        begun = self.start_all(self.rollout, "begin_weights", version, shared.manifest, shared.terms)
        self._send(plan, version, begun)
        asked = self.start_all(self.policy, "probe")  # collective, so of every rank; all say the same
        finishing = self.start_all(self.rollout, "finish_weights", version, asked[0].ref)
        finished = self.wait([*asked, *finishing])[len(asked) :]
        self._held = finished if self._engines_stay else None
        size = sum(spec.nbytes for bucket in plan.buckets for spec in bucket)
        return {"seconds": time.monotonic() - start, "bytes": float(size), "calls": float(self._calls)}

    def _through_store(self, plan: WeightPlan, version: int, begun: list[Call]) -> None:
        """Each rank's part of a bucket is one object in Ray's shared memory; every rollout worker takes all parts of a
        bucket in one call. While they copy one bucket the policy puts the next; no third is begun before the first is
        copied everywhere."""
        self.wait(begun)
        under_way: list[list[Call]] = []
        for bucket in plan.buckets:
            if len(under_way) == _AHEAD:
                self.wait(under_way.pop(0))
            sent = self.start_all(self.policy, "weight_part", bucket, plan.terms is None)
            # The parts are never fetched here; a rank's failure reaches the workers that wait for its part.
            under_way.append(self.start_all(self.rollout, "accept_weights", *(call.ref for call in sent)))
        for calls in under_way:
            self.wait(calls)

    def _by_broadcast(self, plan: WeightPlan, version: int, begun: list[Call]) -> None:
        """One policy rank of each node sends, in turns, every rollout worker takes all, once it has begun: one call
        for each rank and worker."""
        if not self._connected:
            self._connect()
        self._connected = False  # until this has ended well: after a failure all meet anew
        shared = self._shared(plan).plan
        sending = self.start_all(self.policy, "broadcast_weights", shared)
        self.wait([*begun, *self.start_all(self.rollout, "take_broadcast", shared), *sending])
        self._connected = True

    def _by_shared_memory(self, plan: WeightPlan, version: int, begun: list[Call]) -> None:
        """Every rank fills its segment (the engines begin meanwhile), every rollout worker copies out of all: one call
        each. Segments serve all transfers of one layout."""
        if plan.buckets != self._mapped:
            tickets = self.everywhere(self.policy, "open_segment", plan)
            self.everywhere(self.rollout, "map_segments", plan, *tickets)
        self._mapped = None  # until this has ended well: after a failure there are new segments
        filling = self.start_all(self.policy, "fill_segment", plan, version)
        filled = [call.ref for call in filling]
        taking = self.start_all(self.rollout, "take_segments", plan, version, *filled)
        self.wait([*begun, *filling, *taking])
        self._mapped = plan.buckets

    def _by_cuda_ipc(self, plan: WeightPlan, version: int, begun: list[Call]) -> None:
        """Every rank puts the whole weights on its GPU (the engines begin meanwhile); the rollout worker of the same
        place, and so on the same GPU, copies them there. Nothing stays: the roles beside them need the room."""
        lending = self.start_all(self.policy, "lend_weights", plan, version)
        borrowing = [
            self.start(self.rollout, rank, "borrow_weights", plan, version, lending[rank].ref)
            for rank in range(len(self.rollout))
        ]
        self.wait([*begun, *lending, *borrowing])
        self.everywhere(self.policy, "end_loan")

    def _shared(self, plan: WeightPlan) -> _Shared:
        """Put once, as long as the plan stays what it is."""
        if self._put is None or self._put[0] != plan:
            self._put = plan, _Shared(ray.put(plan.manifest), ray.put(plan.terms), ray.put(plan))
        return self._put[1]

    def _connect(self) -> None:
        """Bring all processes into the groups of the broadcast."""
        first: dict[str, int] = {}
        for rank, member in enumerate(self.policy.members):
            first.setdefault(member.node, rank)
        of = uuid.uuid4().hex, tuple(first.values()), len(self.rollout), self._collective
        meeting = self.wait([self.start(self.policy, 0, "open_meeting", *of)])[0]
        joining = self.start_all(self.rollout, "join_broadcast", meeting)
        joining += self.start_all(self.policy, "join_broadcast", meeting)
        self.wait(joining)

    # ---- calls, counted

    def start(self, group: WorkerGroup, rank: int, method: str, *args: Any) -> Call:
        """Start `method` on one worker."""
        self._calls += 1
        return group.call(rank, PHASE, method, *args)

    def start_all(self, group: WorkerGroup, method: str, *args: Any) -> list[Call]:
        """Start `method` on every worker of a group."""
        return [self.start(group, rank, method, *args) for rank in range(len(group))]

    def everywhere(self, group: WorkerGroup, method: str, *args: Any) -> list[Any]:
        """`start_all` and `wait`."""
        return self.wait(self.start_all(group, method, *args))

    def wait(self, calls: list[Call]) -> list[Any]:
        """What the calls return. Raises WorkerError, WorkerTimeout."""
        return gather(calls, self.rollout.timeout)
