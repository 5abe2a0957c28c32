"""The gate on over-reaction: bounds of `evaluate.gate` on the aligned model's measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_dist.config.evaluate import GateConfig
from cai_dist.errors import GateFailed

MOST = ("canned_refusal", "over_refusal", "boilerplate")
"""Measures that must not be above their bound; `engagement` must not be below."""


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


def enforce_gate(result: Path) -> None:
    """Raise GateFailed, one line for each failure, where the evaluation in file `result` has not passed its gate."""
    gate = json.loads(result.read_text(encoding="utf-8")).get("gate") if result.exists() else None
    if gate and gate["failures"]:
        raise GateFailed("\n".join(gate["failures"]))
