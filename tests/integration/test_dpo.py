"""DPO on real workers: the training that plain torch does, and a killed stage that ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from cai_dist.cluster.runtime import Cluster
from cai_dist.config.evaluate import EvaluateConfig
from cai_dist.config.preference import DpoConfig
from cai_dist.config.run import RunConfig, TrackingConfig, WorldConfig
from cai_dist.constitution import load_constitution
from cai_dist.stages.context import RunContext
from cai_dist.stages.evaluation.judges import ImplicitRewardJudge
from cai_dist.stages.execution.chat_format import chat_format
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker
from cai_dist.types import DpoPair, ScoredPair, Turn
from cai_dist.world.build import write_initial_model
from tests.integration import pipeline
from tests.integration.train_bench import PlainAdam, TrainBench, run_steps, split, use
from tests.tiny import VOCAB, save_llama

WORKER = "dpo:DpoWorker"
BETA = 0.4
TINY = Path(__file__).with_name("tiny-dpo.yaml")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("policy"), tied=False, seed=4, std=0.05)


def ragged_pairs(count: int, seed: int = 0) -> list[ScoredPair]:
    """Conversations of 1..6 tokens, answers of 1..9."""
    rng = random.Random(seed)

    def words(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, most)))

    made = []
    for _ in range(count):
        prompt = words(6)
        made.append(ScoredPair(prompt + words(9), prompt + words(9), rng.random(), "ai", len(prompt)))
    return made


def answer_logprob(net: torch.nn.Module, ids: tuple[int, ...], prompt_tokens: int) -> torch.Tensor:
    """log p(answer | conversation), one sequence at a time."""
    rows = torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0], -1)
    return sum((rows[t - 1, ids[t]] for t in range(prompt_tokens, len(ids))), start=torch.tensor(0.0))


def both(net: torch.nn.Module, pair: ScoredPair) -> tuple[torch.Tensor, torch.Tensor]:
    return answer_logprob(net, pair.ids_a, pair.prompt_tokens), answer_logprob(net, pair.ids_b, pair.prompt_tokens)


def plain_losses(source: str, batches: list[list[ScoredPair]], kind: str) -> list[float]:
    """The same training with nothing but torch."""
    net, frozen = (AutoModelForCausalLM.from_pretrained(source) for _ in range(2))
    adam, losses = PlainAdam(net.parameters()), []
    for batch in batches:
        total = torch.tensor(0.0)
        for pair in batch:
            with torch.no_grad():
                ref_a, ref_b = both(frozen, pair)
            a, b = both(net, pair)
            d, p = (a - ref_a) - (b - ref_b), pair.p_a
            if kind == "dpo":
                total = total - p * F.logsigmoid(BETA * d) - (1 - p) * F.logsigmoid(-BETA * d)
            else:
                total = total + p * (d - 0.5 / BETA) ** 2 + (1 - p) * (d + 0.5 / BETA) ** 2
        losses.append(adam.step(total / len(batch)))
    return losses


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_every_stage_and_split_trains_as_plain_torch_does(bench: TrainBench, model: str, kind: str) -> None:
    # The last batch is smaller than ranks x micro_batch: one rank has an empty micro-batch.
    batches = [ragged_pairs(5), ragged_pairs(5, seed=1), ragged_pairs(1, seed=2)] * 2
    expected = plain_losses(model, batches, kind)
    splits = [(1, 0, 5), (2, 2, 2)] if kind == "ipo" else [(1, 0, 5), (1, 3, 2), *((2, z, 1) for z in range(4))]
    for ranks, zero, micro_batch in splits:
        group = bench.make(WORKER, model, ranks=ranks, zero=zero, micro_batch=micro_batch, loss=kind, beta=BETA)
        pairs = [pair for batch in batches for pair in batch]
        refs = split(group, "pair_logprobs", pairs, micro_batch)
        known = {
            pair: DpoPair(pair.ids_a, pair.ids_b, pair.p_a, pair.source, pair.prompt_tokens, *ref)
            for pair, ref in zip(pairs, refs, strict=True)
        }
        found = run_steps(
            group, [[known[p] for p in batch] for batch in batches], micro_batch, lambda batch: float(len(batch))
        )
        assert [m["loss"] for m in found] == pytest.approx(expected, rel=2e-4), (ranks, zero, micro_batch)
        assert found[0]["margin"] == pytest.approx(0.0, abs=1e-5)


def test_log_probabilities_are_those_of_the_answers_alone(bench: TrainBench, model: str) -> None:
    group = bench.make(WORKER, model, ranks=2, zero=2, micro_batch=2, loss="dpo", beta=BETA)
    pairs = ragged_pairs(5)
    net = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        expected = [tuple(side.item() for side in both(net, pair)) for pair in pairs]
    for mine, plain in zip(split(group, "pair_logprobs", pairs, 2), expected, strict=True):
        assert mine == pytest.approx(plain, abs=1e-4)
    assert use(group, "status")[0]["steps"] == 0


def test_the_implicit_reward_is_what_plain_models_give(cluster: Cluster, tmp_path: Path) -> None:
    config = RunConfig(
        name="t", runs_dir=str(tmp_path), constitution="micro", alignment="dpo", dpo=DpoConfig(beta=BETA),
        evaluate=EvaluateConfig(workers=2), tracking=TrackingConfig(wandb="off"),
    )  # fmt: skip
    run_dir = tmp_path / "t"
    folders = [run_dir / stage / "model" for stage in ("dpo", "sft")]
    for seed, folder in enumerate(folders):
        write_initial_model(WorldConfig(), seed, folder)
    (run_dir / "dpo" / "heldout.json").write_text('{"mean_score": 0.0}')
    tracker = Tracker(run_dir, config.tracking, {})
    run = RunContext(
        config, run_dir, Manifest(run_dir), tracker, Console("quiet"), load_constitution("micro"), lambda: False,
        _cluster=cluster,
    )  # fmt: skip
    turns = (Turn("human", "weave rope belum ?"),)
    # More answers than one forward pass takes: they must come back in order.
    answers = ["grind " * (1 + n % 7) + "press ." for n in range(70)]
    found = ImplicitRewardJudge(run).scores([(turns, answer) for answer in answers], "test")
    tracker.close()
    chat = chat_format(run, str(folders[0]))
    prompt = len(chat.prompt_ids(turns))
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    with torch.no_grad():
        for n in (0, 3, 6):
            ids = chat.example(turns, answers[n]).ids
            expected = BETA * (answer_logprob(policy, ids, prompt) - answer_logprob(reference, ids, prompt)).item()
            assert found[n] == found[n + 63] == pytest.approx(expected, abs=1e-4)


def dpo_steps(run_dir: Path) -> list[object]:
    return [line["step"] for line in pipeline.lines_of(run_dir, "dpo")]


def finished(runs: Path, *stage: str) -> dict[str, str]:
    """Go on to the end (or that of one stage); the hashes of what the stage left."""
    done = pipeline.run(TINY, runs, stage=stage)
    assert done.returncode == 0, done.stderr
    skipped = done.stdout.count("done before, skipped")
    assert skipped == (1 if stage else 4), "nothing before the stage is made again"
    run_dir = runs / "tiny-dpo"
    assert dpo_steps(run_dir) == [1, 2, 3, 4, 5, 6]
    paths = [run_dir / "dpo" / "heldout.json", *(run_dir / "dpo").rglob("*.safetensors")]
    return {str(p.relative_to(run_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_with_dpo_ends_with_a_model_and_an_evaluation(whole: Path, tmp_path: Path) -> None:
    run_dir = begun(whole, tmp_path)
    assert "dpo/model/model.safetensors" in finished(tmp_path)
    assert set(json.loads((run_dir / "evaluation.json").read_text())["models"]) == {"base", "sl", "dpo"}
    assert list(json.loads((run_dir / "manifest.json").read_text())["stages"]) == [
        "prepare", "revise", "sft", "feedback", "dpo", "evaluate",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.full  # what it goes on from is what SFT goes on from, and that is always tried (test_pipeline.py)
@pytest.mark.timeout(1800)
def test_killed_in_the_middle_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run_dir = begun(whole, tmp_path / "one")
    # With checkpoints behind it and steps before it.
    pipeline.kill_when(TINY, tmp_path / "one", lambda: 3 in dpo_steps(run_dir))
    assert list((run_dir / "dpo" / "reference").glob("*.parquet"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "tiny-dpo" / "dpo")  # this one begins its stage again
    resumed, straight = finished(tmp_path / "one"), finished(tmp_path / "two", "dpo")
    assert resumed == straight and "dpo/model/model.safetensors" in resumed


def begun(whole: Path, runs: Path) -> Path:
    """A run as it is before `dpo`: what both alignments have in common is the same as that of the run with PPO."""
    run_dir = runs / "tiny-dpo"
    pipeline.copy_without(whole, run_dir, ("preference", "ppo", "evaluate"))
    return run_dir
