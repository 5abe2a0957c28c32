"""The loop of supervised training: a step that is left out is told and not counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai_dist.config.training import ShardingConfig, TrainConfig
from cai_dist.data.batches import loss_weight
from cai_dist.stages.context import RunContext
from cai_dist.stages.execution.training import train
from cai_dist.types import StepShard, TokenSequence

EXAMPLES = [TokenSequence((1, n), (0.0, 1.0)) for n in range(12)]


class Group:
    """One rank that leaves out the steps with these numbers (from 1, in the order in which they come), and remembers
    how many those were."""

    def __init__(self, bad: Sequence[int]) -> None:
        self.bad, self.seen, self.skipped = bad, [], 0

    def __len__(self) -> int:
        return 1

    def scatter(self, phase: str, method: str, shards: Sequence[StepShard[Any]]) -> list[dict[str, float]]:
        self.seen.append(sorted(item.ids[1] for micro in shards[0].micro_batches for item in micro))
        if len(self.seen) in self.bad:
            self.skipped += 1
            return [{"lr": 0.1, "skipped": 1.0}]
        return [{"loss": 1.0, "lr": 0.1}]

    def broadcast(self, phase: str, method: str, folder: str) -> list[int]:
        path = Path(folder) / "skipped"
        if method == "save":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(self.skipped))
        else:
            self.skipped = int(path.read_text())
        return [self.skipped]


def learn(ctx: RunContext, group: Group, steps: int | None) -> int:
    config = TrainConfig(
        batch_size=3, epochs=2, max_steps=steps, checkpoint_every=2, sharding=ShardingConfig(ranks=1, micro_batch=3)
    )
    return train(ctx, "sft", group, EXAMPLES, config, loss_weight, ctx.folder("sft"))  # type: ignore[arg-type]


def logged(ctx: RunContext, series: str) -> list[dict[str, Any]]:
    lines = (ctx.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry.get("stage") == series]


def test_the_next_batch_takes_the_place_of_one_that_is_left_out(make_run: Callable[..., RunContext]) -> None:
    run, plain, holey = make_run(), Group([]), Group([2])
    assert learn(run, plain, 6) == 6
    whole = plain.seen
    run = make_run()
    (run.folder("sft") / "checkpoints").rename(run.folder("sft") / "gone")
    assert learn(run, holey, 5) == 5
    # Six batches were looked at, five learned: none twice, and the one left out does not come again.
    assert holey.seen == whole and holey.skipped == 1
    assert [entry["at_step"] for entry in logged(run, "sft_skipped")] == [2]


def test_a_resumed_job_goes_on_behind_what_was_left_out(make_run: Callable[..., RunContext]) -> None:
    run, straight = make_run(), Group([2])
    learn(run, straight, 6)
    first, second = Group([2]), Group([])
    (run.folder("sft") / "checkpoints").rename(run.folder("sft") / "gone")
    learn(run, first, 5)  # the last checkpoint is that of step 4
    assert learn(run, second, 6) == 6
    assert first.seen[:5] + second.seen == straight.seen and second.skipped == 1
