"""A training engine of one's own: DeepSpeed's, and the metrics say how many seconds a step took.

An engine for another library implements `cai_dist.protocols.TrainEngine` whole, and is made in the same way.

engine: {training: "my_extensions.training_engine:Timed"}
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from cai_dist.engines.protocols.training import LossFn
from cai_dist.engines.training.deepspeed_engine import DeepSpeedEngine

B = TypeVar("B")


class Timed(DeepSpeedEngine):
    """`step_seconds` beside what a step reports. Made as Timed(model, …) in every rank of a trained model."""

    def step(self, micro_batches: Sequence[B], loss_fn: LossFn[B], denominator: float) -> dict[str, float]:
        begun = time.perf_counter()
        found = super().step(micro_batches, loss_fn, denominator)
        return found | {"step_seconds": time.perf_counter() - begun}
