"""A weight transfer of one's own: through Ray's object store, one bucket at a time. The built-in one has two on the
way.

ppo: {transfer: "my_extensions.transfer:one_at_a_time"}
"""

from __future__ import annotations

from cai_dist.cluster.futures import Call
from cai_dist.cluster.ppo.weight_transfer import WeightTransfer
from cai_dist.types import WeightPlan


def one_at_a_time(transfer: WeightTransfer, plan: WeightPlan, version: int, begun: list[Call]) -> None:
    """The next bucket is asked for when every rollout worker has copied the one before it."""
    transfer.wait(begun)
    for bucket in plan.buckets:
        sent = transfer.start_all(transfer.policy, "weight_part", bucket, plan.terms is None)
        transfer.wait(transfer.start_all(transfer.rollout, "accept_weights", *(call.ref for call in sent)))
