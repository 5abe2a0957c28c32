"""The gates of a run: bounds beyond which it does not go on, or ends with exit code 8. What is done stays, and a bound
is no part of any result: with another one the same command goes on.

`feedback.gate` and `preference.gate` stop a run before its next stage, because what follows would learn from labels or
scores that say nothing; `evaluate.gate` ends one whose model over-reacts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_dist.config.evaluate import GateConfig
from cai_dist.errors import GateFailed
from cai_dist.stages.tables.intervals import Figure

MOST = ("canned_refusal", "over_refusal", "boilerplate")
"""Measures that must not be above their bound; `engagement` must not be below."""
CHANCE = 0.5
"""Of two answers, and of two orders."""
REMEDY = {
    "feedback": (
        "take a feedback model that reads the answers (models.feedback, feedback.endpoint), show worked comparisons "
        "(feedback.few_shot) or change how it is asked (feedback.form, prefill, option_labels)"
    ),
    "preference": (
        "look at feedback/principles.json, give it more comparisons (feedback.pairs_per_prompt), more steps "
        "(preference.train) or another trunk (preference.init)"
    ),
}
"""What helps where a stage's figure is no better than chance."""


def stops(stage: str, what: str, figure: Figure, gate: float | None) -> list[str]:
    """Why a run must not go on: one line where the 95% interval of `figure` (of `what`, over prompts) is not all above
    the gate of `stage`, none where it is or there is no gate."""
    if gate is None or above(figure, gate):
        return []
    return [
        f"{stage}.gate={gate:g}: {what} {shown(figure)}, {_short_of(figure, gate)}: {REMEDY[stage]}; or lower the gate "
        f"({stage}.gate=null: none); the same command then goes on from here"
    ]


def warns(stage: str, what: str, figure: Figure, gate: float | None) -> list[str]:
    """One line where a figure is no better than chance and the gate lets it pass."""
    if stops(stage, what, figure, gate) or above(figure, CHANCE):
        return []
    return [f"{what} {shown(figure)}, {_short_of(figure, CHANCE)}: {REMEDY[stage]}"]


def above(figure: Figure, bound: float) -> bool:
    """Whether the whole 95% interval of a figure is above `bound`; not where there is nothing to measure."""
    return figure["low"] is not None and figure["low"] > bound


def shown(figure: Figure) -> str:
    """A figure with its interval, such as `0.87 (0.81–0.91, 64 prompts)`."""
    if figure["value"] is None:
        return "not measured"
    return f"{figure['value']:.2f} ({figure['low']:.2f}–{figure['high']:.2f}, {figure['n']} prompts)"


def _short_of(figure: Figure, bound: float) -> str:
    name = "chance" if bound == CHANCE else f"{bound:g}"
    if figure["value"] is None:
        return "as no pair is decided (more prompts are held out by data.red_team.heldout)"
    if figure["value"] > bound:
        return f"which so few prompts cannot tell from {name} (give more, by data.red_team.limit and heldout)"
    return "no better than chance" if bound == CHANCE else f"not above {name}"


def judge_gate(config: GateConfig, model: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """`model`, `bounds` (those that are set), `passed` and `failures`: one line for each measure out of bounds.

    A measure without a single prompt is no failure. `passed` is None where no bound is set.
    """
    bounds = {name: bound for name, bound in config.model_dump().items() if bound is not None}
    failures = []
    for name, bound in bounds.items():
        value = (measured.get(name) or {}).get("value")
        if value is None:
            continue
        if value > bound if name in MOST else value < bound:
            only = "" if name in MOST else "only "
            failures.append(
                f"evaluate.gate.{name}={bound:g}: {name} of the aligned model ({model}) is {only}{value:.3f}"
            )
    return {"model": model, "bounds": bounds, "passed": not failures if bounds else None, "failures": failures}


def enforce(failures: Sequence[str]) -> None:
    """Raise GateFailed, one line for each failure, where there are any."""
    if failures:
        raise GateFailed("\n".join(failures))


def enforce_gate(result: Path) -> None:
    """Raise GateFailed where the evaluation in file `result` has not passed its gate."""
    gate = json.loads(result.read_text(encoding="utf-8")).get("gate") if result.exists() else None
    enforce((gate or {}).get("failures", ()))
