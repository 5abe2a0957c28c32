"""Who stands where, what a place takes in a phase, and the verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cai_dist.plan.machines import Load, Machines, place
from cai_dist.plan.passes import Serving, Tokens
from cai_dist.plan.shapes import Shape
from cai_dist.plan.workers import (
    CONTEXT_GPU,
    HEAP,
    NCCL_GPU,
    PHASES,
    PROCESS_CPU,
    PROCESS_GPU,
    RolePlacement,
    Training,
    WorkerEstimate,
    rollout_worker,
    scoring_worker,
    trained_worker,
)
from cai_dist.plan.zero import ParameterCounts, Zero

SHAPE = Shape("tiny", 64, 2, 4, 2, 16, 160, 1000, tied=False)
ELEMENTS = ParameterCounts(SHAPE.parameters, SHAPE.parameters, SHAPE.largest)
WORK = Training(Tokens(20, 8), 2, 3, vocabulary=True)


def worker(role: str, count: int, gpus: float, size: int) -> WorkerEstimate:
    return WorkerEstimate(role, count, gpus, {phase: {"weights": size} for phase in PHASES}, {"start": {"process": 1}})


def test_roles_that_share_stand_side_by_side_others_alone() -> None:
    workers = [worker("policy", 2, 1, 10), worker("rollout", 3, 1, 5), worker("reward", 1, 0.5, 2)]
    workers.append(worker("reference", 1, 0.5, 3))
    loads = place(workers, [("policy", "rollout")], Machines(nodes=1, gpus=4))
    assert [load.who for load in loads.gpus] == [
        ("policy[0]", "rollout[0]"),
        ("policy[1]", "rollout[1]"),
        ("rollout[2]",),
        ("reward[0]", "reference[0]"),
    ]
    assert [load.phases["update"] for load in loads.gpus] == [15, 15, 5, 5]
    assert loads.needed_gpus == 4


def test_a_worker_may_have_several_gpus() -> None:
    assert place([worker("policy", 2, 2, 10)], [], Machines(gpus=4)).needed_gpus == 4


def test_verdicts() -> None:
    def verdict(peak: int, limit: int | None) -> str | None:
        return Load("GPU 0", ("policy[0]",), {"update": peak, "score": 1}, limit).verdict

    assert [verdict(peak, 100) for peak in (90, 91, 100, 101)] == ["fits", "tight", "tight", "does not fit"]
    assert verdict(10, None) is None


def test_without_gpus_every_process_counts_with_its_peak_on_its_node() -> None:
    one = WorkerEstimate("policy", 3, 0, {"start": {"weights": 5}, "update": {"weights": 9}}, {})
    loads = place([one], [], Machines(nodes=2, cpu_memory=20))
    assert [(load.name, load.who) for load in loads.hosts] == [
        ("host 0", ("policy[0]", "policy[2]")),
        ("host 1", ("policy[1]",)),
    ]
    assert [load.peak for load in loads.hosts] == [18, 9]
    assert loads.needed_gpus == 0


# ---- workers


def test_a_trained_worker_in_every_phase_by_hand() -> None:
    # Elements: layer 64 x 64 x 2 + 64 x 32 x 2 + 3 x 64 x 160 + 128 = 43136; twice, 2 x 64000 and a norm: 214336
    assert SHAPE.parameters == 214_336
    zero = Zero(3, 4, 2, reduce_bucket=1000)
    found = trained_worker(RolePlacement("policy", 4, 1.0), SHAPE, ELEMENTS, zero, WORK)
    part = 214_336 // 4
    # Built cut: a rank's part, and the largest tensor (64 x 1000) while it is cut.
    assert found.device["start"] == {"process": CONTEXT_GPU + NCCL_GPU, "weights": 2 * (part + 64_000)}
    kept = {"weights": 2 * part, "optimizer": 12 * part, "gradients": 4 * part, "buffers": 2000}
    assert found.device["rollout"] == {"process": CONTEXT_GPU + NCCL_GPU, **kept}
    update = found.device["update"]
    # Gradients are summed in fp32; the largest one of its own, the copy of the bucket, all weights gathered and the
    # buffer that they come in.
    assert update["gradients"] == 4 * part + 2 * 64_000
    assert update["buffers"] == 2 * 2000 + 2 * 2 * 214_336
    assert update["activations"] == 40 * (2 * (1024 + 1792) + 512)
    assert update["logits"] == 16 * 1000 * 10
    assert sum(found.host["update"].values()) == PROCESS_GPU


def test_ranks_that_compute_a_row_together_have_a_part_of_its_activations_each() -> None:
    place, zero = RolePlacement("policy", 4, 1.0), Zero(3, 4, 2)
    alone = trained_worker(place, SHAPE, ELEMENTS, zero, WORK).device
    four = trained_worker(place, SHAPE, ELEMENTS, zero, replace(WORK, together=4)).device
    for phase in ("score", "update"):
        assert 4 * four[phase]["activations"] == alone[phase]["activations"]
        # 16 of 40 tokens are responses: all 10 of a rank's may be.
        assert four[phase]["logits"] * 16 == alone[phase]["logits"] * 10
    assert {k: v for k, v in four["update"].items() if k not in ("activations", "logits")} == {
        k: v for k, v in alone["update"].items() if k not in ("activations", "logits")
    }


def test_the_optimiser_step_counts_where_it_is_larger_than_the_backward_pass() -> None:
    zero = Zero(2, 1, 4, reduce_bucket=1)
    short = Training(Tokens(2, 1), 1, 1, vocabulary=False)
    update = trained_worker(RolePlacement("value", 1, 1.0), SHAPE, ELEMENTS, zero, short).device["update"]
    assert update["gradients"] == 4 * 214_336 + 4 * 214_336
    assert "activations" not in update


def test_of_roles_that_share_only_what_works_is_on_the_gpu() -> None:
    zero = Zero(3, 4, 2, reduce_bucket=1000)
    found = trained_worker(RolePlacement("policy", 4, 1.0, shares=True), SHAPE, ELEMENTS, zero, WORK)
    part = 214_336 // 4
    assert set(found.device["rollout"]) == {"process"}
    assert found.host["rollout"]["made room"] == 2 * part + 12 * part + 4 * part + 2000
    assert "optimizer" not in found.device["score"] and found.device["score"]["weights"] == 2 * part
    assert found.device["update"]["optimizer"] == 12 * part
    frozen = scoring_worker(RolePlacement("reward", 1, 1.0, shares=True), SHAPE, 2, 1000, WORK)
    assert [phase for phase in PHASES if "weights" in frozen.device[phase]] == ["start", "score"]
    engine = rollout_worker(RolePlacement("rollout", 1, 1.0, shares=True), SHAPE, 2, Serving(2, 10, 4))
    assert [phase for phase in PHASES if "weights" in engine.device[phase]] == ["start", "transfer", "rollout"]
    assert "made room" not in engine.host["score"]  # its weights are dropped, not kept


def test_on_a_cpu_nothing_that_trains_becomes_smaller_by_sharing() -> None:
    zero = Zero(2, 2, 4)
    alone = trained_worker(RolePlacement("policy", 2, 0.0), SHAPE, ELEMENTS, zero, WORK)
    shared = trained_worker(RolePlacement("policy", 2, 0.0, shares=True), SHAPE, ELEMENTS, zero, WORK)
    assert alone.device == shared.device
    assert alone.device["rollout"]["process"] == PROCESS_CPU["trained"]
    assert alone.host == {}


@pytest.mark.parametrize("reserved", [None, 10_000_000])
def test_a_reserved_engine_takes_all_of_it(reserved: int | None) -> None:
    found = rollout_worker(RolePlacement("rollout", 1, 1.0), SHAPE, 2, Serving(2, 10, 4), reserved=reserved)
    total = sum(found.device["rollout"].values()) - CONTEXT_GPU
    assert (total == reserved) if reserved else (total < 2_000_000)


def test_a_process_on_a_cpu_by_hand() -> None:
    zero = Zero(2, 2, 4, reduce_bucket=10**9)
    found = trained_worker(RolePlacement("policy", 2, 0.0), SHAPE, ELEMENTS, zero, WORK, transfer=77)
    part = 214_336 // 2
    assert found.device["start"] == {
        "process": PROCESS_CPU["trained"],
        "weights": 4 * 214_336,
        "optimizer": 4 * part,
        "gradients": 4 * part,
    }
    update = found.device["update"]
    passing = {
        "gradients": 2 * 4 * part + 4 * 64_000,  # twice, since a step has three passes; and the largest of its own
        "buffers": 2 * 4 * 214_336,
        "activations": 40 * 4 * (2 * 1280 + 192),
        "logits": 16 * 1000 * 8,
    }
    kept = {"process": PROCESS_CPU["trained"], "weights": 4 * 214_336, "optimizer": 12 * part, "transfer": 77}
    assert update == kept | passing | {"heap": int(HEAP * sum(passing.values()))}
    assert found.device["rollout"] == kept


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_frozen_model_is_read_whole(gpus: float) -> None:
    scalar = Training(Tokens(20, 8), 2, 1, vocabulary=False)
    size = SHAPE.scalar_parameters
    assert (
        scoring_worker(RolePlacement("reward", 1, gpus), SHAPE, 4, size, scalar).device["start"]["weights"] == 4 * size
    )


def test_an_engine_on_a_cpu_keeps_bases_and_the_pages_that_it_has_touched() -> None:
    found = rollout_worker(RolePlacement("rollout", 1, 0.0), SHAPE, 4, Serving(2, 10, 4), transfer=500, bases=300)
    weights = 4 * 214_336 + 300
    assert found.device["start"] == {"process": PROCESS_CPU["rollout"], "weights": 4 * 214_336}
    assert found.device["update"] == {"process": PROCESS_CPU["rollout"], "weights": weights, "transfer": 500}
    assert found.device["rollout"]["heap"] == int(
        HEAP * (found.device["rollout"]["KV cache"] + found.device["rollout"]["activations"])
    )


def test_a_sharded_reference_holds_its_share() -> None:
    zero = Zero(stage=3, ranks=4, item=2, prefetch_bucket=100, max_live=5000)
    found = scoring_worker(RolePlacement("reference", 4, 1.0), SHAPE, 2, SHAPE.parameters, WORK, zero)
    assert found.device["score"]["weights"] == 2 * -(-SHAPE.parameters // 4)
    assert found.device["score"]["buffers"] == 2 * (5000 + 100), "what is whole during a pass, and the prefetched"
    whole = scoring_worker(RolePlacement("reference", 4, 1.0), SHAPE, 2, SHAPE.parameters, WORK)
    assert whole.device["score"]["weights"] == 2 * SHAPE.parameters and "buffers" not in whole.device["score"]
