"""Weights from the ranks of the policy to the rollout workers: begin, buckets, finish - whole or not at all.

Who waits for whom: for each bucket all policy ranks gather (a collective under ZeRO-3) and rank 0 puts the tensors into
Ray's object store; every rollout worker takes them from there by reference. The driver passes references only. While
the workers copy one bucket the policy gathers the next; no third is begun before the first is copied everywhere.
"""

from __future__ import annotations

import time

from cai_dist.cluster.group import WorkerGroup
from cai_dist.cluster.wait import Call, gather

PHASE = "weight transfer"
_AHEAD = 2


def transfer_weights(policy: WorkerGroup, rollout: WorkerGroup, version: int, bucket_bytes: int) -> dict[str, float]:
    """Give every rollout worker the policy's weights as `version`.

    A bucket holds at most `bucket_bytes` (a larger tensor goes alone). Returns {"seconds", "bytes"} (of one copy).

    Raises: WorkerError or WorkerTimeout. The rollout workers that had begun then stay stale: they serve nothing until a
        later transfer has finished.
    """
    start = time.monotonic()
    plan = policy.broadcast(PHASE, "weight_plan", bucket_bytes)[0]
    manifest = [spec for bucket in plan for spec in bucket]
    rollout.broadcast(PHASE, "begin_weights", version, manifest)
    under_way: list[list[Call]] = []
    for index in range(len(plan)):
        if len(under_way) == _AHEAD:
            gather(under_way.pop(0), rollout.timeout)
        sent = [policy.call(rank, PHASE, "weight_bucket", index) for rank in range(len(policy))]
        taken = [rollout.call(rank, PHASE, "accept_weights", sent[0].ref) for rank in range(len(rollout))]
        # Rank 0's result is the bucket: never fetched here; its failure reaches the workers that take it.
        under_way.append([*sent[1:], *taken])
    for calls in under_way:
        gather(calls, rollout.timeout)
    rollout.broadcast(PHASE, "finish_weights", version)
    return {"seconds": time.monotonic() - start, "bytes": float(sum(spec.nbytes for spec in manifest))}
