"""Adapters on a quantised base, on real ranks: it learns, goes on bit for bit, is exported as the model that was
trained, and is what an engine serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import LoraConfig
from cai_dist.data.batches import loss_weight
from cai_dist.errors import WorkerError
from cai_dist.losses.policy import PolicyObjective
from cai_dist.models.load import load_hf_causal
from cai_dist.types import LabelRequest, RankInfo, StepShard
from cai_dist.workers.policy import PolicyWorker
from cai_dist.workers.rollout import RolloutWorker
from tests.inprocess import build_worker
from tests.integration.test_dpo import ragged_pairs
from tests.integration.test_pm_pretraining import count
from tests.integration.test_zero import plain_loss, ragged_batches
from tests.integration.train_bench import TOTAL_STEPS, TrainBench, run_steps, split, use
from tests.tiny import save_llama
from tests.unit.workers.test_first_step import samples, trajectories

pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install -e ".[quant]"')
LANGUAGE, PREFERENCE = "language:LanguageWorker", "preference:PreferenceWorker"


def lora(kind: Any) -> LoraConfig:
    return LoraConfig(rank=4, alpha=16.0, quantization=kind)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("base"), tied=False, seed=2, std=0.05)


@pytest.mark.parametrize(("kind", "zeros"), [("nf4", (0, 1, 2)), ("int8", (2,))])
def test_two_ranks_are_one_and_a_resumed_training_is_the_straight_one(
    bench: TrainBench, base: str, kind: str, zeros: tuple[int, ...], tmp_path: Path
) -> None:
    batches, settings = ragged_batches(1, 6) * TOTAL_STEPS, {"micro_batch": 2, "lora": lora(kind)}
    group = bench.make(LANGUAGE, base, ranks=1, zero=0, **settings)
    expected = run_steps(group, batches, 2, loss_weight)
    assert expected[-1]["loss"] < 0.97 * expected[0]["loss"], "it learns"
    plain = run_steps(bench.make(LANGUAGE, base, ranks=1, zero=0, micro_batch=2), batches[:1], 2, loss_weight)
    assert expected[0]["loss"] != pytest.approx(plain[0]["loss"], rel=1e-6), "the base is another than the original"
    for zero in zeros:
        group = bench.make(LANGUAGE, base, ranks=2, zero=zero, **settings)
        straight = run_steps(group, batches, 2, loss_weight)
        assert [m["loss"] for m in straight] == pytest.approx([m["loss"] for m in expected], rel=1e-4)
        group = bench.make(LANGUAGE, base, ranks=2, zero=zero, **settings)
        run_steps(group, batches[:5], 2, loss_weight)
        use(group, "save", str(tmp_path / str(zero)))
        group = bench.make(LANGUAGE, base, ranks=2, zero=zero, seed=9, **settings)
        use(group, "load", str(tmp_path / str(zero)))
        assert run_steps(group, batches[5:], 2, loss_weight) == straight[5:]
    group = bench.make(LANGUAGE, base, ranks=2, zero=zeros[-1], micro_batch=2, lora=lora("none"))
    with pytest.raises(WorkerError, match=rf"CheckpointError.*{kind} base\) but this run trains LoRA"):
        use(group, "load", str(tmp_path / str(zeros[-1])))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_export_is_the_model_that_was_trained(bench: TrainBench, base: str, kind: str, tmp_path: Path) -> None:
    batches = ragged_batches(2, 4)
    group = bench.make(LANGUAGE, base, ranks=2, zero=2, micro_batch=2, lora=lora(kind))
    run_steps(group, batches * 2, 2, loss_weight)
    use(group, "export", str(tmp_path / "model"))
    loss = run_steps(group, batches[:1], 2, loss_weight)[0]["loss"]
    assert plain_loss(load_hf_causal(str(tmp_path / "model"), "fp32"), batches[0]).item() == pytest.approx(
        loss, rel=1e-5
    )
    found, original = (load_file(Path(f) / "model.safetensors") for f in (tmp_path / "model", base))
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in original.items()}
    assert {name for name in found if not found[name].equal(original[name])} == {n for n in found if "_proj" in n}


def test_a_preference_model_in_bf16_learns_on_four_bits(bench: TrainBench, base: str) -> None:
    pairs = ragged_pairs(6)
    group = bench.make(PREFERENCE, base, ranks=2, zero=2, micro_batch=2, dtype="bf16", lora=lora("nf4"))
    before = split(group, "pair_scores", pairs, 2)
    metrics = run_steps(group, [pairs] * TOTAL_STEPS, 2, count)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert np.abs(np.array(split(group, "pair_scores", pairs, 2)) - np.array(before)).max() > 0.01


@pytest.mark.parametrize("merge", [False, True])
def test_an_engine_gets_what_the_codes_stand_for(base: str, merge: bool) -> None:
    """Base and adapters apart, then the merged model as vLLM takes it; each transfer is probed."""
    policy = build_worker(
        PolicyWorker, base, objective=PolicyObjective(0.2), temperature=1.0, ppo=PpoConfig(), lora=lora("nf4")
    )
    items = samples()
    old = [list(row) for row in policy.logprobs(StepShard((tuple(items),)), 1.0).rows]
    shard = StepShard((tuple(trajectories(items, old)),), 20.0)
    metrics = policy.train_step(shard, 0.1, None)
    assert (metrics["ratio_deviation"], metrics["approx_kl"]) == (0.0, 0.0), "training computes what scoring does"
    for _ in range(3):
        policy.train_step(shard, 0.1, None)
    engine = RolloutWorker(RankInfo("rollout", 0, 1), model=base, require_sync=True)
    plan = policy.weight_plan(20_000, [None if merge else engine.weights_held()])
    engine.begin_weights(1, plan.manifest, plan.terms)
    for bucket in plan.buckets:
        engine.accept_weights(policy.weight_part(bucket, merge=merge))
    engine.finish_weights(1, policy.probe())
    assert engine.weight_version == 1
    request = LabelRequest(((5, 6, 7),), ((9,),))
    plain = RolloutWorker(RankInfo("rollout", 0, 1), model=base).score_labels(request)
    assert engine.score_labels(request)[0] != pytest.approx(plain[0], abs=1e-4)
