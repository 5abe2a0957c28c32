"""Broadcast groups of a weight transfer, over gloo between threads of this process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from cai_dist.distributed.process_group import listening_store
from cai_dist.models.tensors import spec_of
from cai_dist.types import TensorPiece, TensorSpec, WeightPlan
from cai_dist.weight_sync.broadcast import Rendezvous, WeightSender, WeightTaker
from cai_dist.weight_sync.protocol import buckets
from cai_dist.weight_sync.receiver import WeightReceiver

RANKS, ENGINES, SENDERS = 4, 3, (0, 2)
TENSORS = {f"w{i}": torch.arange(5.0 * (i + 1)) + i for i in range(7)}
SPECS = [spec_of(name, tensor) for name, tensor in TENSORS.items()]
PLAN = WeightPlan(tuple(SPECS), tuple(buckets(SPECS, 100)))


class Gathering:
    """A source whose tensors are whole while they are looked at, and zero afterwards, as gathered partitions are."""

    def __init__(self) -> None:
        self.gathered: list[list[str]] = []

    def whole(self, bucket: Sequence[TensorSpec], merge: bool) -> Iterator[tuple[TensorPiece, Tensor]]:
        self.gathered.append([spec.name for spec in bucket])
        here = {spec.name: TENSORS[spec.name].clone() for spec in bucket}
        for name, tensor in here.items():
            yield TensorPiece(name, 0, tensor.numel()), tensor
        for tensor in here.values():
            tensor.zero_()


@pytest.fixture(scope="module")
def sent() -> tuple[list[Gathering], list[WeightTaker], list[dict[str, Tensor]]]:
    store, port = listening_store("127.0.0.1", 30.0)
    meeting = Rendezvous("127.0.0.1", port, uuid.uuid4().hex, SENDERS, ENGINES, 30.0)
    sources = [Gathering() for _ in range(RANKS)]

    def send(rank: int) -> None:
        source: Any = sources[rank]
        WeightSender(meeting, rank, store if rank == 0 else None).send(source, PLAN)

    def take(engine: int) -> tuple[WeightTaker, dict[str, Tensor]]:
        taker, here = WeightTaker(meeting, engine), {name: torch.zeros_like(t) for name, t in TENSORS.items()}
        receiver = WeightReceiver(here, 1, PLAN.manifest)
        for parts in taker.buckets(PLAN):
            receiver.accept(parts)
        receiver.finish(1)
        return taker, here

    with ThreadPoolExecutor(RANKS + ENGINES) as pool:
        sending = [pool.submit(send, rank) for rank in range(RANKS)]
        taking = [pool.submit(take, engine) for engine in range(ENGINES)]
        taken = [one.result(timeout=60) for one in taking]
        for one in sending:
            one.result(timeout=60)
    return sources, [taker for taker, _ in taken], [here for _, here in taken]


def test_every_engine_has_every_tensor(sent: Any) -> None:
    assert len(PLAN.buckets) > 2 * len(SENDERS)
    for here in sent[2]:
        assert all(torch.equal(here[name], tensor) for name, tensor in TENSORS.items())


def test_an_engine_is_in_as_many_groups_as_ranks_send_not_as_there_are(sent: Any) -> None:
    assert [taker.groups for taker in sent[1]] == [len(SENDERS)] * ENGINES


def test_all_ranks_gather_all_buckets_in_one_order(sent: Any) -> None:
    order = [[spec.name for spec in bucket] for bucket in PLAN.buckets]
    assert [source.gathered for source in sent[0]] == [order] * RANKS
