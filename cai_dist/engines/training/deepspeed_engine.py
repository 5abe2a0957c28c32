"""TrainEngine on DeepSpeed ZeRO 0-3: CPU over gloo, CUDA over NCCL.

How the gradient comes out exact: the loss function returns (sum over its micro-batch) / global denominator. DeepSpeed
averages gradients over ranks, so the loss is multiplied by their number before the backward pass; what is left is
d(sum over micro-batches and ranks of the summed loss / denominator), however the batch was cut. Ranks that compute a
sequence together have the same loss each, and of its gradient what goes through their own tokens
(`cai_dist.models.sequence_parallel`): their sum is the gradient of that loss once.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cai_dist.config.ds_config import build_ds_config
from cai_dist.config.training import Dtype, ExportConfig, OptimizerConfig, ShardingConfig
from cai_dist.distributed.process_group import worker_device
from cai_dist.engines.protocols.training import LossFn, Model
from cai_dist.engines.training.decay import parameter_groups
from cai_dist.engines.training.deepspeed_setup import import_deepspeed, initialize, undo_first_step
from cai_dist.engines.training.finite import refuse_weights, spoilt, step_problem
from cai_dist.engines.training.learning_rate import learning_rate
from cai_dist.engines.training.offload import Offloader, model_tensors, optimizer_tensors, scratch_tensors
from cai_dist.engines.training.weight_files import WeightFiles
from cai_dist.errors import CheckpointError, NonFiniteError
from cai_dist.models.adapter import HEAD, write_adapter
from cai_dist.models.causal import CausalModel
from cai_dist.models.export import save_configs
from cai_dist.models.lora import (
    LoraFactors,
    adapter_dropouts,
    adapters_off,
    lora_summary,
    merged,
    split_parameters,
)
from cai_dist.models.scalar import ScalarHeadModel
from cai_dist.models.tensors import TORCH_DTYPES, from_numpy, spec_of, to_numpy
from cai_dist.types import MemoryPart
from cai_dist.weight_sync.protocol import buckets
from cai_dist.weight_sync.sender import ParameterSource

B = TypeVar("B")
R = TypeVar("R")
_TAG = "engine"
_EXPORT_BUCKET = 256 * 2**20


class DeepSpeedEngine:
    """One rank. `model` is a `CausalModel` or `ScalarHeadModel`; the process group must be up. A model with LoRA
    adapters trains these; its whole parameters are then the merged ones, under the plain model's names.

    `optimizer` None makes an engine that only scores. `total_steps` is the length of the learning-rate schedule,
    `timeout` (seconds) bounds every collective. `dropout`: training passes have the dropout of the model's own config,
    and all else that architectures do in training alone; without it they compute what `infer` computes. Raises
    ConfigError for a contradictory DeepSpeed file.
    """

    def __init__(
        self,
        model: CausalModel | ScalarHeadModel,
        optimizer: OptimizerConfig | None,
        sharding: ShardingConfig,
        dtype: Dtype,
        total_steps: int,
        timeout: float,
        dropout: bool = False,
    ) -> None:
        config = build_ds_config(sharding, optimizer, dtype)
        self.device = worker_device()
        self.steps = self.skipped = 0
        self.zero = sharding.zero
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._counted = float(self.rank % sharding.sequence_parallel == 0)
        self._optimizer, self._total_steps = optimizer, total_steps
        self._dropout = dropout
        self._model: Any = model.to(self.device)
        self._deepspeed = import_deepspeed(timeout)
        trained = {"model_parameters": parameter_groups(model, model.hf, optimizer)} if optimizer else {}
        self._engine: Any = initialize(self._deepspeed, model=model, config=config, **trained)
        if self.zero == 0 and dtype == "bf16" and optimizer:
            for parameter in model.parameters():
                parameter.grad_dtype = torch.float32  # of micro-batches, summed; ZeRO's stages do it by themselves
            undo_first_step(self._engine.optimizer)
        if self.ranks == 1 and self.zero == 0 and dtype == "fp32":
            # Nobody to reduce with: DeepSpeed would copy all gradients to a buffer and back.
            self._engine.enable_backward_allreduce = False
        self._memory = Offloader(
            self.device,
            {
                "weights": lambda: model_tensors(self._model),
                "optimizer": lambda: optimizer_tensors(self._model, self._engine.optimizer),
            },
            lambda: scratch_tensors(self._engine.optimizer),
        )
        self._lora = lora_summary(self._model.hf)
        self._parameters, self._factors = split_parameters(self._model.hf)
        self._weights = ParameterSource(self._parameters, self._factors, self.rank, self.ranks, self._gathered)

    # ---- training

    def step(self, micro_batches: Sequence[B], loss_fn: LossFn[B], denominator: float) -> dict[str, float]:
        """One optimiser step, see `TrainEngine`."""
        assert self._optimizer is not None, "this engine was built without an optimiser"
        self._memory.need("weights", "optimizer")
        lr = learning_rate(self._optimizer, self.steps, self._total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._enter_training()
        sums: dict[str, Tensor] = {}
        total = torch.zeros(0)
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            loss, metrics = loss_fn(self._engine, batch, denominator)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            if last:
                total = self._summed(sums)
                loss = spoilt(loss, total[sorted(sums).index("loss")])
            self._engine.backward(loss * self.ranks, scale_wrt_gas=False)
        norm, taken = self._optimise()
        found = dict(zip(sorted(sums), total.tolist(), strict=True))
        if not taken:
            return self._skip(float(sums["loss"]), found, norm, lr)
        self.steps += 1
        return {**found, "grad_norm": norm, "lr": lr}

    def _optimise(self) -> tuple[float, bool]:
        """The step itself: (gradient norm before clipping, whether it was taken). One with a norm that is not finite is
        not, on any rank: nothing of weights and moments has changed. ZeRO looks at the norm between reducing and
        updating; without ZeRO nobody does."""
        if self.zero:
            self._engine.step()
            return float(self._engine.get_global_grad_norm()), bool(self._engine.was_step_applied())
        norm = self._plain_grad_norm()
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return norm, False
        self._engine.step()
        return norm, True

    def _skip(self, loss: float, total: dict[str, float], norm: float, lr: float) -> dict[str, float]:
        """A step that was not taken is counted apart; one too many raises NonFiniteError. Metrics are those that are
        numbers."""
        assert self._optimizer is not None
        problem = step_problem(self.steps, loss, total["loss"], norm, self.device)
        self.skipped += 1
        if self.skipped > (allowed := self._optimizer.skipped_steps):
            before = f", the {self.skipped}th of the job with optimizer.skipped_steps={allowed}" if allowed else ""
            raise NonFiniteError(f"{problem}{before}; lower optimizer.lr, or begin from other weights or data")
        finite = {name: value for name, value in {**total, "grad_norm": norm}.items() if math.isfinite(value)}
        return {**finite, "lr": lr, "skipped": 1.0}

    def _enter_training(self) -> None:
        """The model as a training pass needs it. Old log-probabilities, values and references come from `infer`:
        dropout, jitter of routers and whatever else `.train()` switches on would make the first ratio another than 1.
        A LoRA adapter's dropout is a setting of its own (`LoraConfig.dropout`)."""
        self._engine.train(self._dropout)
        for module in adapter_dropouts(self._model.hf):
            module.train()

    def infer(self, micro_batches: Sequence[B], fn: Callable[[Model, B], R]) -> list[R]:
        """Results of `fn` without gradients, see `TrainEngine`."""
        self._memory.need("weights")
        self._engine.eval()
        with torch.no_grad():
            return [fn(self._engine, batch) for batch in micro_batches]

    @property
    def weights(self) -> ParameterSource:
        """Where transfers take the parameters from, see `TrainEngine`; what it reads is on the device from here on."""
        self._memory.need("weights")
        return self._weights

    def keep_on_device(self, parts: Collection[MemoryPart]) -> dict[MemoryPart, float]:
        """Keep these parts of the memory on the device, see `TrainEngine`."""
        self._memory.keep_on_device(parts)
        return self._memory.left

    def adapters_off(self) -> AbstractContextManager[None]:
        """A block in which the model has no adapters, see `TrainEngine`."""
        return adapters_off(self._model.hf)

    def _plain_grad_norm(self) -> float:
        """Without ZeRO the gradients lie whole in the parameters, reduced by the last backward pass."""
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.float32)
            for p in self._model.parameters()
            if p.grad is not None
        ]
        if not norms:
            return float(self._engine.get_global_grad_norm() or 0)
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _summed(self, sums: dict[str, Tensor]) -> Tensor:
        """Metrics over all ranks, by name; every rank has the same names (a promise of the loss function). Those of a
        sequence group have the same numbers, too: one of them counts."""
        total = torch.stack([sums[name].double() for name in sorted(sums)]) * self._counted
        dist.all_reduce(total)
        return total

    # ---- whole parameters

    def _full_parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """The named parameters, whole, as numpy arrays on rank 0; an empty dict on the others. One gather for all
        `names`: keep them to one bucket."""
        factors = {name: self._factors[name] for name in names if name in self._factors}
        # A quantised weight is whole on every rank.
        parameters = [p for name in names if isinstance(p := self._parameters[name], Tensor)]
        with self._gathered([*parameters, *_factor_parameters(factors)]):
            if self.rank != 0:
                return {}
            return {name: to_numpy(self._whole(name)) for name in names}

    def _whole(self, name: str) -> Tensor:
        """A gathered parameter, its adapter added (to a copy: the frozen weight itself never changes)."""
        weight = self._parameters[name].detach()
        return merged(weight, self._factors[name]) if name in self._factors else weight

    @contextmanager
    def _gathered(self, parameters: list[Tensor]) -> Iterator[None]:
        """Under ZeRO-3, the parameters whole on every rank while the block runs; they are only read."""
        self._memory.need("weights")
        if self.zero < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
            yield

    def export(self, folder: Path, settings: ExportConfig | None = None) -> None:
        """Write the model, see `TrainEngine`. A tied output head is left to the config, as transformers does. Raises
        NonFiniteError."""
        self._memory.need("weights")
        refuse_weights(self._model, self.device, self.steps, "model")
        settings, hf = settings or ExportConfig(), self._model.hf
        specs = {spec.name: spec for spec in self.weights.specs()}
        persistent = set(hf.state_dict(keep_vars=True))
        buffers = {name: buffer for name, buffer in hf.named_buffers() if name in persistent}
        entries = [*specs.values(), *(spec_of(name, buffer) for name, buffer in buffers.items())]
        dtype = None if settings.dtype == "model" else TORCH_DTYPES[settings.dtype]
        folder.mkdir(parents=True, exist_ok=True)
        files = WeightFiles(hf, entries, folder, int(settings.max_shard_gb * 1e9), dtype)
        for group in files.groups:
            whole = {name: buffers[name].detach().cpu() for name in group if name in buffers}
            for bucket in buckets([specs[name] for name in group if name in specs], _EXPORT_BUCKET):
                arrays = self._full_parameters([spec.name for spec in bucket])
                whole |= {name: from_numpy(array, specs[name].dtype) for name, array in arrays.items()}
            if self.rank == 0:
                files.add(whole)
        if self.rank == 0:
            files.close()
            save_configs(hf, folder, str(dtype or hf.dtype).removeprefix("torch."))
        dist.barrier()

    def export_adapter(self, folder: Path, base: str) -> None:
        """Write the adapters (and a scalar head) alone, see `TrainEngine`. Raises NonFiniteError."""
        self._memory.need("weights")
        refuse_weights(self._model, self.device, self.steps, "adapter")
        head = self._parameters.get(HEAD)
        head = head if isinstance(head, Tensor) and head.requires_grad else None
        with self._gathered([*_factor_parameters(self._factors), *([] if head is None else [head])]):
            if self.rank == 0:
                write_adapter(folder, base, self._model.hf, self._factors, head)
        dist.barrier()

    # ---- checkpoints

    def save(self, folder: Path) -> None:
        """Write all that the next step depends on, see `TrainEngine`. Weights that LoRA froze are not written: they
        come from the model that the engine was built with. Raises NonFiniteError."""
        self._memory.need("weights", "optimizer")
        refuse_weights(self._model, self.device, self.steps, "checkpoint")
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=bool(self._factors)
        )
        torch.save(_rng_state(), folder / f"rng-{self.rank}.pt")
        if self.rank == 0:
            state = self._shape() | {"lora": self._lora, "steps": self.steps, "skipped": self.skipped}
            (folder / "engine.json").write_text(json.dumps(state), "utf-8")
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, see `TrainEngine`. Ranks, ZeRO stage and adapters must be those of `save`."""
        try:
            saved = json.loads((folder / "engine.json").read_text("utf-8"))
            rng = torch.load(folder / f"rng-{self.rank}.pt", weights_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: incomplete engine checkpoint: {error}") from error
        if saved.get("lora", "") != self._lora:
            raise CheckpointError(
                f"{folder}: saved with {_trained(saved.get('lora', ''))} but this run trains {_trained(self._lora)}; "
                "resume with the same lora"
            )
        if {key: saved.get(key) for key in self._shape()} != self._shape():
            raise CheckpointError(
                f"{folder}: saved with ranks={saved.get('ranks')}, zero={saved.get('zero')} but this run has "
                f"ranks={self.ranks}, zero={self.zero}; resume with the same sharding"
            )
        self._memory.need("weights", "optimizer")
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._factors)
        if loaded is None:
            raise CheckpointError(f"{folder}: DeepSpeed found no checkpoint there")
        self.steps, self.skipped = int(saved["steps"]), int(saved.get("skipped", 0))
        self._weights.renew()
        _set_rng_state(rng)

    def _shape(self) -> dict[str, int]:
        return {"ranks": self.ranks, "zero": self.zero}


def _factor_parameters(factors: Mapping[str, LoraFactors]) -> list[Tensor]:
    return [p for one in factors.values() for p in (one.a, one.b)]


def _trained(lora: str) -> str:
    return f"LoRA ({lora})" if lora else "all weights"


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
