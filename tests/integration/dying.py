"""A rollout worker that dies in the middle of a broadcast of weights."""

from __future__ import annotations

import os
import signal
from typing import Any

from cai_dist.types import RankInfo
from cai_dist.workers.rollout import RolloutWorker


class DyingRollout(RolloutWorker):
    """Dies on request: `armed` ranks after they have taken one bucket of a broadcast."""

    def __init__(self, info: RankInfo, *, armed: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(info, **kwargs)
        self._armed = info.rank in armed

    def take_broadcast(self, plan: Any) -> None:
        for parts in self._taker.buckets(plan):
            self._engine.accept_weights(parts)
            if self._armed:
                os.kill(os.getpid(), signal.SIGKILL)
