"""A weight-transfer backend for vLLM: tensors of this process, handed over as they are or through shared memory.

vLLM's own backends need CUDA and NCCL (or RDMA). This one is registered under a name of ours and driven by the same
calls on CPU and on CUDA: `start_weight_update`, `update_weights` (any number of times) and `finish_weight_update`. It
runs in every process that holds a part of the model; each loads of every tensor the part that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_pp_group
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from cai_dist.engines.vllm.handover import SharedTensors
from cai_dist.errors import WeightTransferError

NAME = "cai_dist"


@dataclass
class HandoverInit(WeightTransferInitInfo):
    """Nothing to set up."""


@dataclass
class HandoverUpdate(WeightTransferUpdateInfo):
    """Some whole tensors under their names in the checkpoint: objects of this process, or in shared memory."""

    tensors: Mapping[str, Tensor] | SharedTensors = field(default_factory=dict)


class Handover(WeightTransferEngine[HandoverInit, HandoverUpdate]):
    """Loads what it is given through vLLM's layerwise reload, which repacks each layer for its kernels."""

    init_info_cls = HandoverInit
    update_info_cls = HandoverUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: HandoverInit) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Begin an update: from here on the model's layers collect what comes for them."""
        if current_platform.is_cpu():
            forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: HandoverUpdate) -> None:
        """Load one bucket; a layer that has all of its tensors is repacked at once."""
        came = update_info.tensors
        tensors = came.read() if isinstance(came, SharedTensors) else came
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors.items())

    def finish_weight_update(self) -> None:
        """Back to serving layers, and a tied output layer takes over the new embeddings."""
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to close."""


def forget_packed_experts(model: nn.Module) -> None:
    """Have the experts of a mixture pack their matrices anew when new ones have come.

    On CPU vLLM multiplies with experts in a packed form. It packs them when it makes the kernel, and at an update it
    keeps the kernel: the matrices would be read as packed without being so. Without a kernel it makes one.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


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


class WorkerExtension:
    """What vLLM's worker processes are told to import, so that the backend is there; they gain its methods."""

    model_runner: Any

    def make_room_between_stages(self) -> None:
        """Room for what one pipeline stage hands to the next. vLLM makes it in its trial run, which the CPU build does
        not do."""
        runner = self.model_runner
        if runner.intermediate_tensors is None and not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )


MAKE_ROOM = WorkerExtension.make_room_between_stages.__name__
EXTENSION = f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}"

if NAME not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(NAME, Handover)
