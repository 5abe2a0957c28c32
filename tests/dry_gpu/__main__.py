"""`python -m tests.dry_gpu [CHECK/DTYPE …]`: checks on the absent GPU and on the CPU; one line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.dry_gpu.absent_gpu import GPU, OnGpu  # isort: skip  # first: it changes torch

import numpy as np
import torch

from cai_dist.types import Generation, KeepRemote
from tests.dry_gpu.checks import CHECKS, Place
from tests.dry_gpu.inputs import save_models
from tests.dry_gpu.placement import one_rank, workers_on
from tests.dry_gpu.waits import WAITS


def numbers(found: Any) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(found, dict):
        return [number for _, value in sorted(found.items()) for number in numbers(value)]
    if isinstance(found, KeepRemote):
        return numbers(found.rows)
    if isinstance(found, Generation):
        return [*map(float, found.response_ids), *map(float, found.logprobs)]
    if isinstance(found, torch.Tensor):
        return [float(x) for x in (found.real if isinstance(found, OnGpu) else found).flatten()]
    if isinstance(found, np.ndarray):
        return [float(x) for x in found]
    return [float(found)] if isinstance(found, int | float) else [x for one in found for x in numbers(one)]


def compare(expected: list[float], found: list[float]) -> float:
    """The largest difference, in proportion to numbers above 1; infinite for answers of other lengths."""
    if len(expected) != len(found) or not np.isfinite(found).all():
        return float("inf")
    return max((abs(a - b) / max(1.0, abs(a)) for a, b in zip(expected, found, strict=True)), default=0.0)


def examine(name: str, place: Place) -> dict[str, Any]:
    """One check: difference to the CPU, waits by line, and what went wrong."""
    with workers_on(torch.device("cpu")):
        expected = numbers(CHECKS[name](place)())
    try:
        with workers_on(GPU):
            run = CHECKS[name](place)
            WAITS.begin()
            try:
                answer = run()
            finally:
                waits = WAITS.end()
            found = numbers(answer)
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {
        "error": "",
        "count": len(found),
        "difference": compare(expected, found),
        "waits": dict(waits.most_common()),
    }


def main(wanted: Sequence[str]) -> None:
    torch.set_num_threads(1)
    one_rank()
    with tempfile.TemporaryDirectory() as made:
        save_models(Path(made))
        for one in wanted or [f"{name}/{dtype}" for name in CHECKS for dtype in ("fp32", "bf16")]:
            name, _, dtype = one.partition("/")
            found = examine(name, Place(Path(made), dtype))  # type: ignore[arg-type]
            print(json.dumps({"check": one, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
