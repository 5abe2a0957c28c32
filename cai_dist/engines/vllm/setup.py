"""Starting and ending a vLLM engine inside this process."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cai_dist.config.engine import EngineConfig
from cai_dist.config.training import Dtype
from cai_dist.errors import DataError
from cai_dist.models.adapter import base_of
from cai_dist.models.checkpoint_names import converts_alone
from cai_dist.models.export import save_model
from cai_dist.models.load import load_config, load_hf_causal
from cai_dist.models.tensors import TORCH_DTYPES

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives here: weights are handed over, not sent
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the worker's own threads; "auto" would pin every engine to the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
LEAST_HEAD_DIM = 32
"""Of vLLM's attention on CPU."""
MAX_TOKENS_SCORED = 128
"""Token ids whose log-probabilities vLLM gives at one position."""

for _name, _value in _ENVIRONMENT.items():  # vLLM reads its environment while it is imported
    os.environ.setdefault(_name, _value)

from vllm import LLM  # noqa: E402
from vllm.config import WeightTransferConfig  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from cai_dist.engines.vllm import weight_backend  # noqa: E402


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    return bool(current_platform.is_cpu())


def start_vllm(source: str, dtype: Dtype, config: EngineConfig, *, random_weights: bool) -> LLM:
    """A vLLM engine with the model in `source` (a folder, of a LoRA adapter too, or a hub name).

    `random_weights`: only the architecture is read, for a model whose weights are about to come. Log-probabilities are
    those of the distribution that is sampled from. Raises DataError.
    """
    base = base_of(source)
    hf_config = load_config(base)
    _refuse_small_heads(source, hf_config)
    if random_weights or base == source:
        return _llm(base, dtype, config, "dummy" if random_weights else "safetensors")
    with TemporaryDirectory() as folder:  # vLLM reads whole models
        save_model(load_hf_causal(source, dtype), Path(folder))
        return _llm(folder, dtype, config, "safetensors")


def stop_vllm(llm: LLM) -> None:
    """Free what the engine holds; the caller lets go of `llm` too."""
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def outline_of(source: str, dtype: Dtype) -> PreTrainedModel:
    """The transformers model in `source` without memory. vLLM fuses and renames its parameters; what arrives by
    transfer has the names of this model. Raises DataError."""
    config = load_config(source)
    with torch.device("meta"):
        hf: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[dtype])
    if not converts_alone(hf, dict(hf.named_parameters())):
        raise DataError(
            f"{source}: several of its tensors together make one of its checkpoint, so that vLLM cannot be given new "
            "weights tensor by tensor; set engine.backend=hf"
        )
    return hf


def _llm(model: str, dtype: Dtype, config: EngineConfig, load_format: str) -> LLM:
    cpu = on_cpu()
    memory: dict[str, Any] = {"gpu_memory_utilization": config.vllm.gpu_memory_utilization, "enable_sleep_mode": True}
    if cpu:
        # A prompt is read in one pass: of one read in parts vLLM wants to wind the row's generator back, which a
        # generator of the CPU cannot do.
        memory = {"kv_cache_memory_bytes": int(config.vllm.kv_cache_gb * 2**30), "enable_chunked_prefill": False}
    vllm = config.vllm
    try:
        return LLM(
            model=str(Path(model)) if Path(model).is_dir() else model,
            dtype=str(TORCH_DTYPES[dtype]).removeprefix("torch."),
            load_format=load_format,
            use_tqdm_on_load=False,
            skip_tokenizer_init=True,  # token ids in, token ids out
            generation_config="vllm",  # no sampling settings from the model's folder
            max_model_len=-1,  # the model's own, or what fits into the cache
            max_num_seqs=config.max_rows,
            max_logprobs=MAX_TOKENS_SCORED,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            enforce_eager=vllm.enforce_eager,
            tensor_parallel_size=vllm.tensor_parallel,
            pipeline_parallel_size=vllm.pipeline_parallel,
            enable_expert_parallel=vllm.expert_parallel,
            distributed_executor_backend="mp" if vllm.processes > 1 else "uni",
            worker_extension_cls=weight_backend.EXTENSION,
            weight_transfer_config=WeightTransferConfig(backend=weight_backend.NAME),
            disable_log_stats=True,
            seed=0,
            **memory,
        )
    except Exception as error:
        raise DataError(f"{model}: vLLM does not start with this model: {_line(error)}") from error


def _refuse_small_heads(source: str, config: Any) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if on_cpu() and size < LEAST_HEAD_DIM:
        raise DataError(
            f"{source}: its attention heads have {size} dimensions; on CPU vLLM needs at least {LEAST_HEAD_DIM}: take "
            "another model or set engine.backend=hf"
        )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
