"""How far an engine's log-probabilities are from the trainer's after a transfer, right and with one wrong matrix.

    python benchmarks/transfer_probe.py MODEL [--dtype bf16] [--backend vllm]

Prints the mean distance (nats a token) over `weight_sync.probe.probe_sample` for the weights as they are, and for each
of a number of faults: a matrix of one layer replaced by that of another, or with its halves in each other's place.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from cai_dist.config.engine import EngineConfig, VllmConfig
from cai_dist.data.batches import all_response_rows, sample_batch
from cai_dist.models.load import load_causal
from cai_dist.models.tensors import spec_of, to_numpy
from cai_dist.types import RankInfo, TensorPiece, WeightPart
from cai_dist.weight_sync.probe import probe_of, probe_sample
from cai_dist.workers.forward import batch_logprobs
from cai_dist.workers.rollout import RolloutWorker


def trainer_says(model: Any) -> Any:
    sample = probe_sample(model.hf.config.get_text_config().vocab_size)
    batch = sample_batch([sample])
    with torch.no_grad():
        (row,) = all_response_rows([(batch.on_host, batch_logprobs(model, batch, 1.0))])
    return probe_of(sample, row)


def send(worker: RolloutWorker, tensors: dict[str, torch.Tensor], version: int) -> None:
    manifest = [spec_of(name, tensor) for name, tensor in tensors.items()]
    worker.begin_weights(version, manifest, None)
    for spec in manifest:
        flat = to_numpy(tensors[spec.name]).reshape(-1)
        piece = TensorPiece(spec.name, 0, len(flat))
        worker.accept_weights(WeightPart((piece,), flat.view(np.uint8)))
    worker.finish_weights(version)


def faults(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """One wrong tensor each."""
    found = {}
    names = [name for name, tensor in tensors.items() if tensor.dim() == 2 and ".layers." in name]
    for part in ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"):
        own = [name for name in names if part in name]
        for at in (0, len(own) // 2, len(own) - 1):
            name, other = own[at], own[at - 1]
            found[f"{part} of layer {at} is another layer's"] = {name: tensors[other]}
            found[f"halves of {part} of layer {at} changed places"] = {
                name: tensors[name].roll(len(tensors[name]) // 2, 0)
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--backend", default="hf", choices=("hf", "vllm"))
    asked = parser.parse_args()
    model = load_causal(asked.model, asked.dtype)
    probe = trainer_says(model)
    tensors = {name: tensor.detach().clone() for name, tensor in model.hf.named_parameters()}
    engine = EngineConfig(backend=asked.backend, vllm=VllmConfig(kv_cache_gb=0.5))
    worker = RolloutWorker(RankInfo("rollout", 0, 1), model=asked.model, dtype=asked.dtype, engine=engine, threads=2)

    def distance(version: int, changed: dict[str, torch.Tensor]) -> float:
        send(worker, tensors | changed, version)
        return float(np.abs(np.diagonal(worker.score_labels(probe.asked)) - np.array(probe.logprobs)).mean())

    print(f"{asked.model}, {asked.dtype}, {asked.backend}: mean log-probability {np.mean(probe.logprobs):.2f}")
    print(f"{distance(1, {}):.2g}  as sent")
    for version, (name, changed) in enumerate(faults(tensors).items(), start=2):
        print(f"{distance(version, changed):.2g}  {name}", flush=True)
    worker.keep_on_device(())


if __name__ == "__main__":
    main()
