"""Segments of shared memory: every bit arrives, and one that is another, not filled or not there is refused."""

from __future__ import annotations

import os
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cai_dist.errors import ConfigError, WeightTransferError
from cai_dist.types import WeightPlan
from cai_dist.weight_sync.receiver import WeightReceiver
from cai_dist.weight_sync.segments import SegmentSender, SegmentTaker, SegmentTicket
from cai_dist.weight_sync.segments_cuda import CudaPlace, unshared_allocator
from cai_dist.weight_sync.sender import ParameterSource

RANKS = 3


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """Sizes that three ranks do not divide, one of them of fewer elements than ranks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 7), "b": (2,), "c": (11,), "d": (64, 3)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def sources(parameters: dict[str, nn.Parameter]) -> list[ParameterSource]:
    return [ParameterSource(parameters, {}, rank, RANKS, lambda _: nullcontext()) for rank in range(RANKS)]


def senders(plan: WeightPlan) -> list[SegmentSender]:
    return [SegmentSender(plan.buckets, rank, RANKS) for rank in range(RANKS)]


def met(seed: int = 0) -> tuple[list[ParameterSource], WeightPlan, list[SegmentSender], SegmentTaker]:
    made = sources(tensors(seed))
    plan = made[0].plan(200, [""])
    assert len(plan.buckets) > 1
    sending = senders(plan)
    return made, plan, sending, SegmentTaker(plan, [one.ticket for one in sending])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_arrives_and_the_segments_serve_the_next_version_too(dtype: torch.dtype) -> None:
    sent, here = tensors(0, dtype), tensors(1, dtype)
    made = sources(sent)
    plan = made[0].plan(200, [""])
    sending = senders(plan)
    taker = SegmentTaker(plan, [one.ticket for one in sending])
    for version in (0, 1):
        with torch.no_grad():
            sent["a"].mul_(-3.0)
        for source, sender in zip(made, sending, strict=True):
            sender.fill(source, plan, version)
        receiver = WeightReceiver(here, version, plan.manifest)
        for parts in taker.buckets(plan, version):
            receiver.accept(parts)
        receiver.finish(version)
        assert all(torch.equal(here[name], sent[name]) for name in sent)


def test_a_version_that_is_not_there_on_every_rank_is_refused() -> None:
    made, plan, sending, taker = met()
    with pytest.raises(WeightTransferError, match="version 4: the segment of rank 0 is not filled"):
        next(taker.buckets(plan, 4))
    for rank in (0, 1, 2):
        sending[rank].fill(made[rank], plan, 4 if rank < 2 else 3)
    with pytest.raises(WeightTransferError, match="version 4: the segment of rank 2 holds version 3"):
        next(taker.buckets(plan, 4))


def test_a_sender_that_stops_half_way_leaves_a_segment_that_nobody_takes() -> None:
    made, plan, sending, taker = met()
    for rank in range(RANKS):
        sending[rank].fill(made[rank], plan, 0)
    made[1]._parameters.pop("c")
    with pytest.raises(KeyError):
        sending[1].fill(made[1], plan, 1)
    for version in (0, 1):
        with pytest.raises(WeightTransferError, match="rank (0 holds version 0|1 is not filled)"):
            next(taker.buckets(plan, version))


def test_what_changes_while_it_is_taken_is_noticed_at_the_end() -> None:
    made, plan, sending, taker = met()
    for rank in range(RANKS):
        sending[rank].fill(made[rank], plan, 5)
    coming = taker.buckets(plan, 5)
    next(coming)
    sending[1].fill(made[1], plan, 6)
    with pytest.raises(WeightTransferError, match="rank 1 holds version 6"):
        list(coming)


def test_a_plan_that_they_were_not_laid_out_for_is_refused_by_both_sides() -> None:
    made, plan, sending, taker = met()
    other = made[0].plan(10**6, [""])
    for work in (lambda: sending[0].fill(made[0], other, 1), lambda: next(taker.buckets(other, 1))):
        with pytest.raises(WeightTransferError, match="plan is another"):
            work()


def test_another_segment_of_the_same_size_and_one_of_another_size_are_refused(tmp_path: Path) -> None:
    made, plan, sending, _ = met()
    strangers = senders(plan)
    tickets = [one.ticket for one in sending]
    swapped = SegmentTaker(plan, [replace(tickets[0], place=strangers[0].ticket.place), *tickets[1:]])
    for source, sender, stranger in zip(made, sending, strangers, strict=True):
        sender.fill(source, plan, 1)
        stranger.fill(source, plan, 1)
    with pytest.raises(WeightTransferError, match="the segment of rank 0 has another layout"):
        next(swapped.buckets(plan, 1))
    short = tmp_path / "short"
    short.write_bytes(bytes(tickets[0].size - 1))
    for wrong, message in [
        (replace(tickets[0], place=str(short)), f"has {tickets[0].size - 1} bytes"),
        (replace(tickets[0], size=1), "is announced with 1 bytes and needs"),
        (SegmentTicket(str(tmp_path / "none"), tickets[0].size, b""), "cannot be reached from here .No such file"),
    ]:
        with pytest.raises(WeightTransferError, match=message):
            SegmentTaker(plan, [wrong, *tickets[1:]])


def test_the_engine_cannot_write_and_nothing_has_a_name() -> None:
    made, plan, sending, taker = met()
    assert all(os.readlink(one.ticket.place).endswith(" (deleted)") for one in sending)
    assert os.stat(sending[0].ticket.place).st_mode & 0o777 == 0o600
    for rank in range(RANKS):
        sending[rank].fill(made[rank], plan, 1)
    data = next(taker.buckets(plan, 1))[0].data[0]
    assert isinstance(data, np.ndarray) and not data.flags.writeable
    path = sending[0].ticket.place
    del sending[0]
    assert not os.path.exists(path), "the descriptor goes with the sender"


def test_one_segment_of_whole_tensors_is_as_good_as_one_for_each_rank() -> None:
    sent, here = tensors(0), tensors(1)
    for source in sources(sent):
        plan = source.plan(200, [""])
        sender = SegmentSender(plan.buckets)
        sender.fill(source, plan, 3)
        receiver = WeightReceiver(here, 3, plan.manifest)
        for parts in SegmentTaker(plan, [sender.ticket]).buckets(plan, 3):
            assert len(parts) == 1
            receiver.accept(parts)
        receiver.finish(3)
        assert all(torch.equal(here[name], sent[name]) for name in sent)
        here = tensors(1)


def test_no_room_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    space = namedtuple("space", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: space(1, 4096))
    plan = sources({"w": nn.Parameter(torch.zeros(3 * 4096))})[0].plan(2**20, [""])
    with pytest.raises(
        ConfigError, match="shared memory for weights: no segment of 0 MiB .*set ppo.transfer="
    ) as found:
        senders(plan)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:64, Expandable_Segments : true"),
        ("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync"),
    ],
)
def test_memory_that_other_processes_cannot_open_is_known_by_the_allocators_settings(name: str, value: str) -> None:
    why = unshared_allocator({name: value})
    assert why.startswith(f"{name}={value} takes memory from") and "set ppo.transfer=object_store" in why


def test_any_other_allocator_is_fine() -> None:
    fine = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False,backend:native"}
    assert unshared_allocator(fine) == unshared_allocator({}) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_neither_side_has_such_a_segment() -> None:
    plan = sources(tensors(0))[0].plan(200, [""])
    with pytest.raises(ConfigError, match="ppo.transfer=cuda_ipc: this worker has no GPU; set ppo.transfer=object"):
        SegmentSender(plan.buckets, on_gpu=True)
    ticket = SegmentTicket(CudaPlace("GPU 1", torch.empty, ()), SegmentSender(plan.buckets).ticket.size, b"")
    with pytest.raises(WeightTransferError, match="the segment is on GPU 1 and this process has no GPU"):
        SegmentTaker(plan, [ticket])
