"""A weight-transfer backend for vLLM: tensors of this process, handed over as they are.

vLLM's own backends need CUDA and NCCL (or RDMA). This one is registered under a name of ours and driven by the same
calls on CPU and on CUDA: `start_weight_update`, `update_weights` (any number of times) and `finish_weight_update`. It
needs vLLM's engine to live in the process that calls it: tensors travel in the update's `tensors` as objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from cai_dist.errors import WeightTransferError

NAME = "cai_dist"


@dataclass
class InProcessInit(WeightTransferInitInfo):
    """Nothing to set up."""


@dataclass
class InProcessUpdate(WeightTransferUpdateInfo):
    """Some whole tensors under their names in the checkpoint."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class InProcessTransfer(WeightTransferEngine[InProcessInit, InProcessUpdate]):
    """Loads what it is given through vLLM's layerwise reload, which repacks each layer for its kernels."""

    init_info_cls = InProcessInit
    update_info_cls = InProcessUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InProcessInit) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Begin an update: from here on the model's layers collect what comes for them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: InProcessUpdate) -> None:
        """Load one bucket; a layer that has all of its tensors is repacked at once."""
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in update_info.tensors.items())

    def finish_weight_update(self) -> None:
        """Back to serving layers, and a tied output layer takes over the new embeddings."""
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to close."""


def repack_tied_head(model: nn.Module) -> None:
    """Have an output layer that shares its matrix with the embeddings pack it anew.

    On CPU vLLM multiplies with a packed copy of the matrix, and it repacks a layer when a tensor of the layer's own
    name arrives. A tied checkpoint has none for the output layer: its logits would stay those of the old weights.
    Raises WeightTransferError if the layer no longer shares the matrix.
    """
    embeddings = {id(m.weight) for m in model.modules() if hasattr(m, "weight") and not isinstance(m, ParallelLMHead)}
    for head in [module for module in model.modules() if isinstance(module, ParallelLMHead)]:
        if id(head.weight) in embeddings:
            with torch.no_grad():
                head.quant_method.process_weights_after_loading(head)
        elif getattr(model.config, "tie_word_embeddings", False):
            raise WeightTransferError("after the update the tied output layer of vLLM's model has a matrix of its own")


if NAME not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(NAME, InProcessTransfer)
