"""Work by hand, and rates from runs and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_dist.config.loading.load import build_run, dump_run
from cai_dist.errors import DataError
from cai_dist.plan.machines import Machines
from cai_dist.plan.passes import Tokens
from cai_dist.plan.rates import Rates, Seconds, forward, read_rates, seconds, work_of
from cai_dist.plan.roles import Assumed, ppo_stage, shapes
from cai_dist.plan.shapes import Shape
from tests.unit.plan.runs import run_of

SHAPE = Shape("tiny", 64, 2, 4, 2, 16, 160, 1000, tied=False)


def test_a_forward_pass_by_hand() -> None:
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
    attention = 2 * 2 * 64 * 10  # 2 x layers x all query heads x sequence, a token
    assert forward(SHAPE, 30, 10, 7) == 30 * (2 * matrices + attention) + 2 * 7 * 64 * 1000


def test_work_of_an_iteration() -> None:
    config = run_of(epochs=2)
    found = shapes(config, Assumed({}))
    tokens = Tokens(200, 100)
    work = work_of(config, found, tokens)
    plain = forward(found["value"], 64 * 200, 200, 0)
    headed = forward(found["policy"], 64 * 200, 200, 64 * 100)
    assert work.rollout == headed
    assert work.score == 2 * headed + 2 * plain  # policy, reference, value, reward
    # Two epochs, and on GPUs the layers of each (as many FLOPs as a pass without logits) a second time.
    assert work.update == 2 * (3 * (headed + plain) + 2 * plain)
    assert work.transfer == 2 * 8_030_261_248


def test_seconds_are_work_over_rates() -> None:
    config = run_of()
    found, tokens = shapes(config, Assumed({})), Tokens(200, 100)
    work = work_of(config, found, tokens)
    measured = seconds(config, found, tokens, Rates(1e12, 1e12, 2e12, 1e9, "all", "measured"))
    assert measured.rollout == pytest.approx((work.rollout + work.score) / 1e12)
    assert measured.update == pytest.approx(work.update / 2e12)
    assert measured.transfer == pytest.approx(16.06, rel=1e-3)
    # On GPUs of their own policy and value step side by side: the slower of the two counts, over its four ranks.
    assumed = seconds(config, found, tokens, Rates(0, 1e14, 1e14, 1e9, "gpu", "assumed", read=1e12))
    layers = forward(found["policy"], 64 * 200, 200, 0)
    assert assumed.update == pytest.approx((3 * work.rollout + layers) / (4 * 1e14))
    kept = run_of(policy={"ranks": 4, "gradient_checkpointing": False})
    assert work_of(config, found, tokens).update - work_of(kept, found, tokens).update == layers
    # 64 samples on 2 engines at once: each of 100 tokens reads 16.06 GB of weights and the cache so far.
    reads = 100 * (2 * 8_030_261_248 + 32 * 150 * 131_072)
    prompts = forward(found["rollout"], 3200, 100, 32) / 1e14
    assert assumed.rollout == pytest.approx(reads / 1e12 + prompts)


def test_roles_that_share_gpus_share_their_time() -> None:
    """Of four roles on the same GPUs the sum counts, of halves of one GPU each has half of its rate."""
    rates = Rates(0, 1e14, 1e14, 1e9, "gpu", "assumed", read=1e12, host=1e10)
    config = run_of(placement={"mode": "colocated"})
    found, tokens = shapes(config, Assumed({})), Tokens(200, 100)
    work = work_of(config, found, tokens)
    plain, headed = forward(found["value"], 64 * 200, 200, 0), forward(found["policy"], 64 * 200, 200, 64 * 100)
    together = seconds(config, found, tokens, rates)
    workers = {role: config.ppo.workers_of(role) for role in config.ppo.roles}
    assert workers == {"policy": 4, "value": 4, "reference": 4, "reward": 4, "rollout": 2}
    assert together.score == pytest.approx(work.score / (4 * 1e14))
    assert together.update == pytest.approx(work.update / (4 * 1e14))
    halves = run_of(placement={"reference": {"gpus": 0.5}, "reward": {"gpus": 0.5}})
    assert seconds(halves, found, tokens, rates).score == pytest.approx(headed / (0.5 * 1e14))
    one = seconds(run_of(), found, tokens, rates)
    assert one.score == pytest.approx(headed / 1e14) and one.moves == 0.0
    assert plain < headed


def test_what_leaves_a_shared_gpu_goes_to_the_host_and_back() -> None:
    config = run_of(placement={"mode": "colocated"})
    found, tokens = shapes(config, Assumed({})), Tokens(200, 100)
    stage = ppo_stage(config, found, Assumed({}), Machines(gpus=4))
    took = seconds(config, found, tokens, Rates(0, 1, 1, 1e9, "gpu", "", read=1, host=1e10), stage.workers)
    # Policy and value: weights, states, gradients and a bucket, out and in once; reference and reward: the weights.
    sizes = (found["policy"].parameters, found["value"].scalar_parameters)
    trained = sum(18 * -(-size // 4) + 100_000_000 for size in sizes)
    frozen = 2 * (found["reference"].parameters + found["reward"].scalar_parameters)
    assert took.moves == pytest.approx(2 * (trained + frozen) / 1e10, rel=0.02)
    one = Seconds(9.0, 3.0, 4.0, 1.0, "assumed", moves=5.0)
    assert (one.total("sync"), one.total("one_step_off")) == (22.0, 15.0)


def test_rates_of_a_run_are_medians_without_the_first_iteration(tmp_path: Path) -> None:
    config = build_run({"name": "done", "models": {"context": 160}, "ppo": {"sampling": {"max_new_tokens": 20}}})
    (tmp_path / "config.yaml").write_text(dump_run(config), "utf-8")
    row = {"stage": "ppo", "response_length": 10.0, "rollout_seconds": 2.0, "update_seconds": 4.0}
    row |= {"sync_bytes": 100.0, "sync_seconds": 0.5}
    slow = {**row, "rollout_seconds": 100.0, "update_seconds": 100.0}
    later = {**row, "rollout_seconds": 4.0}
    lines = [json.dumps({"stage": "sft", "loss": 1.0}), json.dumps(slow), json.dumps(row), json.dumps(later), "{broken"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    found = read_rates(tmp_path, lambda run: shapes(run, Assumed({})), 50)
    work = work_of(config, shapes(config, Assumed({})), Tokens(60, 10))
    assert found.rollout == pytest.approx((work.rollout + work.score) * (1 / 2 + 1 / 4) / 2)
    assert found.update == pytest.approx(work.update / 4)
    assert (found.transfer, found.per) == (200.0, "all")
    assert str(tmp_path) in found.source


def test_rates_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"score": 1e14, "update": 2e14, "read": 1e12, "transfer": 1e9}), "utf-8")
    found = read_rates(path, lambda run: {}, None)
    assert (found.score, found.update, found.read, found.transfer, found.per) == (1e14, 2e14, 1e12, 1e9, "gpu")


@pytest.mark.parametrize("content", ["", "[]", '{"score": 1}', '{"score": 1, "update": 1, "read": 0, "transfer": 1}'])
def test_a_file_without_rates_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError) as error:
        read_rates(path, lambda run: {}, None)
    assert "--rates" in str(error.value) and "\n" not in str(error.value)


def test_a_run_without_an_iteration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_run(build_run({"name": "young"})), "utf-8")
    (tmp_path / "metrics.jsonl").write_text("", "utf-8")
    with pytest.raises(DataError, match="no iteration of PPO"):
        read_rates(tmp_path, lambda run: shapes(run, Assumed({})), None)


def test_sampling_beside_the_rest_counts_where_it_takes_longer() -> None:
    quick, slow = Seconds(2.0, 3.0, 4.0, 1.0, "measured"), Seconds(9.0, 3.0, 4.0, 1.0, "measured")
    assert [found.total("sync") for found in (quick, slow)] == [10.0, 17.0]
    assert [found.total("one_step_off") for found in (quick, slow)] == [8.0, 10.0]
    assert slow.total("partial") == slow.total("sync")
