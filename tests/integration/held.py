"""A worker that says what DeepSpeed holds, for the test of the plan."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from cai_dist.engines.training.offload import model_tensors, optimizer_tensors
from cai_dist.workers.language import LanguageWorker


class HeldWorker(LanguageWorker):
    """`held` after a step is what stays until the next one."""

    def held(self) -> tuple[int, int]:
        """Bytes of weights and of all that the optimiser has beside them."""
        engine = self.engine
        weights = _storages(model_tensors(engine._model))  # type: ignore[attr-defined]
        optimizer = _storages(optimizer_tensors(engine._model, engine._engine.optimizer))  # type: ignore[attr-defined]
        return sum(weights.values()), sum(size for key, size in optimizer.items() if key not in weights)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of every storage that has memory (DeepSpeed keeps the shapes of parameters as meta tensors)."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
