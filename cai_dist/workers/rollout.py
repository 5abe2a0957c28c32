"""A worker that answers prompts: in the data stages from a folder, in PPO with weights that arrive by transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai_dist.config.training import Dtype
from cai_dist.engines.factory import build_rollout_engine
from cai_dist.types import GenerateRequest, Generation, LabelRequest, RankInfo, TensorSpec
from cai_dist.workers.base import Worker


class RolloutWorker(Worker):
    """One rollout engine. `model` may be empty: then each request names its own; a model stays loaded until a request
    names another. `require_sync`: nothing is served before the first finished weight transfer."""

    def __init__(
        self,
        info: RankInfo,
        *,
        model: str = "",
        dtype: Dtype = "fp32",
        engine: str = "hf",
        require_sync: bool = False,
        threads: int = 1,
    ) -> None:
        super().__init__(info, threads=threads)
        self._engine = build_rollout_engine(engine, dtype, require_sync=require_sync)
        self._loaded = ""
        self._use(model)

    def generate(self, request: GenerateRequest) -> list[Generation]:
        """One response per prompt. Raises StaleEngineError, DataError."""
        self._use(request.model)
        return self._engine.generate(request)

    def score_labels(self, request: LabelRequest) -> list[tuple[float, ...]]:
        """Per prompt, the log-probability of each label. Raises StaleEngineError, DataError."""
        self._use(request.model)
        return self._engine.score_labels(request)

    # ---- weight transfer, receiving side: begin, accept ..., finish

    def begin_weights(self, version: int, manifest: Sequence[TensorSpec]) -> None:
        """Open a transfer; from here until `finish_weights` nothing is served. Raises WeightTransferError."""
        self._engine.begin_weights(version, manifest)

    def accept_weights(self, bucket: dict[str, Any]) -> None:
        """Some whole tensors. Raises WeightTransferError."""
        self._engine.accept_weights(bucket)

    def finish_weights(self, version: int) -> None:
        """Close the transfer. Raises WeightTransferError if something is missing."""
        self._engine.finish_weights(version)

    @property
    def weight_version(self) -> int:
        """Version of the weights that it serves with; -1: none."""
        return self._engine.weight_version

    def status(self) -> dict[str, Any]:
        """As in `Worker`, with the engine's state and model."""
        return super().status() | {"engine": self._engine.status(), "model": self._loaded}

    def _use(self, model: str) -> None:
        if model and model != self._loaded:
            self._loaded = ""
            self._engine.load(model)
            self._loaded = model
