"""Some PPO iterations of cai_dist on a prepared task, timed phase by phase; `ppo_step.py` starts it as a process.

The real thing: a Ray cluster on this machine, the roles as actors, DeepSpeed, weight transfer, the coordinator's own
loop. Prints one JSON line. PYTHONPATH decides which checkout is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
from cai_dist.cluster.runtime import Cluster
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.run import ClusterConfig, TimeoutsConfig
from cai_dist.coordinator import loop
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
from cai_dist.types import Trajectory

SCORING = ("policy_logprobs", "reference_logprobs", "values", "scores")


class Timed:
    """A `Pending` that notes when its result was there."""

    def __init__(self, pending: Any, done: Callable[[], None]) -> None:
        self._pending, self._done = pending, done

    def result(self, meanwhile: Callable[[], None] | None = None) -> Any:
        """Wait, note, return."""
        result = self._pending.result() if meanwhile is None else self._pending.result(meanwhile)
        self._done()
        return result

    def parts(self) -> Iterator[Any]:
        """Samples as they come; noted when the last one was there."""
        yield from self._pending.parts()
        self._done()


class TimedRoles:
    """The five roles with a clock: `calls` is (name, start, end) of every call since it was last emptied."""

    def __init__(self, roles: PpoGroups) -> None:
        self._roles = roles
        self.calls: list[tuple[str, float, float]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._roles, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()

            def done() -> None:
                self.calls.append((name, start, time.perf_counter()))

            outcome = method(*args, **kwargs)
            if hasattr(outcome, "result"):
                return Timed(outcome, done)
            done()
            return outcome

        return call


class NoCheckpoints:
    """Saving is not what is measured."""

    def latest(self) -> None:
        """There is none."""

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """The loop saves after the last iteration, when the clock has stopped."""
        raise Finished
        yield Path()


class Finished(Exception):
    """All iterations are measured."""


def main(task_file: str) -> None:
    """Run the task in `task_file`."""
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))
    config = ppo_config(task)
    prompts = [TokenizedPrompt(str(n), "red_team", tuple(ids)) for n, ids in enumerate(task["prompts"])]
    cluster = ClusterConfig.model_validate({"threads": task["threads_per_worker"]})
    models = PpoModels(task["model"], task["model"], task["reward"], task["reward"])
    steps = task["iterations"] * task["epochs"]
    with (
        Cluster(cluster, 4) as ray_cluster,
        PpoGroups(
            ray_cluster,
            config,
            models,
            dtype=task["dtype"],
            end_id=task["eos_id"],
            policy_steps=steps,
            value_steps=steps,
            seed=task["seed"],
            timeouts=TimeoutsConfig(),
            threads=dict.fromkeys(config.roles, task["threads_per_worker"]),
        ) as roles,
    ):
        print(json.dumps(measure(TimedRoles(roles), prompts, config, task)))


def ppo_config(task: dict[str, Any]) -> PpoConfig:
    """The settings of the task; what it does not name stays at its default."""
    rollout, rows = {"workers": task["rollout_workers"]}, {}
    if "rollout_batch" in PpoConfig.model_fields:  # a checkout from before these settings does without
        rows = {"rollout_batch": -(-task["samples"] // task["rollout_workers"])}
        rollout["threads"] = task["threads"] // task["rollout_workers"]
    role = {"ranks": task["ranks"], "zero": task["zero"], "micro_batch": task["micro_batch"]}
    return PpoConfig.model_validate(
        {
            "iterations": task["iterations"],
            "prompts_per_iteration": task["samples"],
            "mini_batch": task["samples"],
            "helpful_fraction": 0,
            "epochs": task["epochs"],
            "policy": role,
            "value": role,
            "policy_optimizer": {"lr": task["lr"]},
            "value_optimizer": {"lr": task["lr"]},
            "kl": {"coefficient": task["kl"]},
            "sampling": {"max_new_tokens": task["response_tokens"], "temperature": task["temperature"]},
            "old_logprobs": "sampler",  # as PPOTrainer, which keeps the probabilities that generation gave
            "checkpoint_every": task["iterations"],
            **rows,
            "placement": {"rollout": rollout},
        }
    )


def measure(
    roles: TimedRoles, prompts: Sequence[TokenizedPrompt], config: PpoConfig, task: dict[str, Any]
) -> dict[str, Any]:
    """Seconds of every iteration, by phase, and the tokens that it worked on."""
    iterations: list[dict[str, Any]] = []
    tokens: list[dict[str, int]] = []
    ended = [0.0]

    def on_rollout(_: int, batch: Sequence[Trajectory]) -> None:
        trajectories = tuple(batch)
        lengths = [len(t.prompt_ids) + len(t.response_ids) for t in trajectories]
        tokens.append(
            {
                "tokens": sum(lengths),
                "squares": sum(n * n for n in lengths),
                "response_tokens": sum(len(t.response_ids) for t in trajectories),
                "longest_prompt": max(len(t.prompt_ids) for t in trajectories),
            }
        )

    def log(step: int, **numbers: float) -> None:
        now = time.perf_counter()
        # The first iteration begins with its first call; what came before is the start-up.
        began = ended[0] or min(start for name, start, _ in roles.calls if name == "generate")
        iterations.append({"seconds": now - began, **phases(roles.calls, began), **tokens[-1]})
        roles.calls, ended[0] = [], now

    with suppress(Finished):
        loop.train(
            roles,
            prompts,
            config,
            seed=task["seed"],
            stop_ids=(task["eos_id"],),
            checkpoints=NoCheckpoints(),
            log=log,
            should_stop=lambda: False,
            on_rollout=on_rollout,
        )
    return {"iterations": iterations}


def phases(spans: list[tuple[str, float, float]], began: float) -> dict[str, float]:
    """Seconds of each phase. Policy and value update run side by side: `update` is the wall time of both."""

    def wall(*names: str) -> float:
        chosen = [(start, end) for name, start, end in spans if name in names and start >= began]
        return max(end for _, end in chosen) - min(start for start, _ in chosen) if chosen else 0.0

    def total(name: str) -> float:
        return sum(end - start for n, start, end in spans if n == name and start >= began)

    scored = max(end for name, _, end in spans if name in SCORING)
    updated = min(start for name, start, _ in spans if name.startswith("update_"))
    return {
        "rollout": wall("generate"),
        "score": wall(*SCORING),
        "advantages": updated - scored,
        "update": wall("update_policy", "update_value"),
        "policy_update": total("update_policy"),
        "value_update": total("update_value"),
        "transfer": wall("sync_weights"),
    }


if __name__ == "__main__":
    main(sys.argv[1])
