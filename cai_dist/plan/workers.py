"""What one worker of a role takes in every phase, item by item, in bytes.

A worker on a GPU has two columns: its device and its part of the host. On a CPU all is in its process. Numbers that are
not arithmetic stand at the top of this file with where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cai_dist.plan.passes import (
    Serving,
    Tokens,
    decoding,
    kept_activations,
    kv_cache,
    logits,
    passing_activations,
)
from cai_dist.plan.shapes import Shape
from cai_dist.plan.zero import ParameterCounts, States, Zero, gathered, share, states
from cai_dist.types import PHASE_NEEDS

MIB = 2**20
PROCESS_CPU: Mapping[str, int] = {"trained": 545 * MIB, "scoring": 452 * MIB, "rollout": 450 * MIB}
"""Resident memory of a worker with a model of 0.15 M parameters (launch/runs/demo.yaml, `ppo/placement.json`): Python,
torch, transformers, Ray, for trained roles DeepSpeed and gloo."""
PROCESS_GPU = 1536 * MIB
"""Assumed: host memory of a process that uses CUDA."""
CONTEXT_GPU = 600 * MIB
"""Assumed: CUDA context, kernels and cuBLAS's workspace on the device."""
NCCL_GPU = 400 * MIB
"""Assumed: buffers of NCCL, of a rank that talks to others."""

HEAP = 1.0
"""On a CPU what a pass takes and gives back stays in the process, and pieces of other sizes do not fit into its gaps:
its heap grows by this share of the largest pass more. Measured on SmolLM2 (benchmarks/plan_memory.py: cases `zero3` and
`lora`); workers take large tensors from the heap, too (MALLOC_MMAP_THRESHOLD_ in cluster/environment.py)."""

PHASES = ("start", "transfer", "rollout", "score", "update")
Items = Mapping[str, int]
ITEMS = (
    "process",
    "weights",
    "optimizer",
    "gradients",
    "buffers",
    "activations",
    "logits",
    "KV cache",
    "transfer",
    "heap",
)
"""In the order in which they are shown. `buffers`: ZeRO's buckets, gathered and dequantised weights; `transfer`: of
weights; `heap`: see `HEAP`."""


@dataclass(frozen=True)
class WorkerEstimate:
    """`count` of these are alike. `gpus`: what each asks for; 0: it runs on the CPU, and `device` is its process."""

    role: str
    count: int
    gpus: float
    device: Mapping[str, Items]
    """Phase -> item -> bytes."""
    host: Mapping[str, Items]
    """The same for the host; empty on a CPU."""
    shares: bool = False

    def peak(self) -> int:
        """The largest sum of a phase on the device."""
        return max(sum(items.values()) for items in self.device.values())

    def host_peak(self) -> int:
        """Bytes at the peak on the host; on a CPU it is all there is."""
        return max((sum(items.values()) for items in (self.host or self.device).values()), default=0)


@dataclass(frozen=True)
class RolePlacement:
    """How a role is placed: processes, what each asks for, and whether others are on the same GPU."""

    role: str
    count: int
    gpus: float
    shares: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it has a device beside the host."""
        return self.gpus > 0


@dataclass(frozen=True)
class Training:
    """What a trained model's rank works on in one micro-batch, and in how many of them a step goes.

    `vocabulary`: log-probabilities come out (a scalar head has none); `scaled`: at a temperature other than 1;
    `checkpointed`: a layer keeps its input alone for the backward pass; `together`: so many ranks compute a micro-batch
    together, each a stretch of its tokens.
    """

    tokens: Tokens
    sequences: int
    passes: int
    vocabulary: bool
    scaled: bool = False
    checkpointed: bool = False
    together: int = 1

    @property
    def total(self) -> int:
        """Tokens of a micro-batch that this rank computes."""
        return share(self.sequences * self.tokens.sequence, self.together)

    @property
    def rows(self) -> int:
        """Tokens among them that need logits, at most: a stretch may be all response."""
        return min(self.sequences * self.tokens.wanted, self.total) if self.vocabulary else 0


def trained_worker(
    place: RolePlacement, shape: Shape, elements: ParameterCounts, zero: Zero, work: Training, transfer: int = 0
) -> WorkerEstimate:
    """A rank that trains; `transfer`: bytes of weights on their way that it holds."""
    held = states(elements, zero, work.passes, place.on_gpu)
    process = PROCESS_CPU["trained"]
    if place.on_gpu:
        process = CONTEXT_GPU + (NCCL_GPU if zero.ranks > 1 else 0)
    kept = _kept(held, zero)
    if not place.on_gpu:  # what is offloaded goes from this process to this process
        kept = _sum(kept, {"weights": held.host_weights, "optimizer": held.host_optimizer})
    start = _start(elements, zero, place.on_gpu)
    passes: dict[str, Items] = {
        "transfer": {"transfer": transfer},
        "rollout": {},
        "score": {
            "activations": passing_activations(shape, zero.item, work.total),
            "logits": logits(shape, zero.item, work.rows, work.scaled, training=False),
            "buffers": held.gathered + zero.item * elements.unpacked,
        },
        "update": _update(shape, elements, zero, held, work),
    }
    offloaded = {"offloaded": held.host_weights + held.host_optimizer}
    return _worker(place, process, start, kept, passes, held_back=kept, host=offloaded)


def _start(elements: ParameterCounts, zero: Zero, on_gpu: bool) -> Items:
    """The model is whole in every rank; in stage 3 it is built cut, a tensor at a time. A CPU takes nothing back:
    masters and the zeros that the optimiser is set up with come on top, in bf16 the copy that masters are made of, in
    stage 3 the partitions (their part of the mapped files counts, too)."""
    b, whole = zero.item, {"weights": elements.nbytes(zero.item) if on_gpu else zero.item * elements.total}
    if zero.stage == 3:
        whole = {"weights": b * (share(elements.total, zero.ranks) + (elements.largest if on_gpu else 0))}
    if on_gpu or zero.stage == 0:
        return whole
    part = share(elements.trained, zero.ranks)
    copies = b * part if zero.stage == 3 or b == 2 else 0
    gradients = 4 * part + (4 * part if zero.stage == 3 else 0)
    if zero.stage == 1 and b == 2:
        gradients = 4 * elements.trained
    return _sum(whole, {"weights": copies, "optimizer": 4 * part, "gradients": gradients})


def scoring_worker(
    place: RolePlacement, shape: Shape, item: int, elements: int, work: Training, zero: Zero | None = None
) -> WorkerEstimate:
    """A frozen model: whole in one process (on a CPU its file is mapped; all of it is read when it is loaded), or, with
    `zero`, a rank's part of it and the weights that are whole during a pass."""
    weights = {"weights": item * (elements if zero is None else share(elements, zero.ranks))}
    scoring = {
        "activations": passing_activations(shape, item, work.total),
        "logits": logits(shape, item, work.rows, work.scaled, training=False),
        "buffers": 0 if zero is None else gathered(elements, zero),
    }
    passes: dict[str, Items] = {"transfer": {}, "rollout": {}, "score": scoring, "update": {}}
    process = CONTEXT_GPU if place.on_gpu else PROCESS_CPU["scoring"]
    if zero is not None:
        process = CONTEXT_GPU + NCCL_GPU if place.on_gpu else PROCESS_CPU["trained"]
    return _worker(place, process, weights, weights, passes, held_back=weights)


def rollout_worker(
    place: RolePlacement,
    shape: Shape,
    item: int,
    serving: Serving,
    transfer: int = 0,
    bases: int = 0,
    reserved: int | None = None,
    parts: int = 1,
) -> WorkerEstimate:
    """An engine, or with `parts` one of so many processes that it is cut over. `transfer`: bytes on their way that it
    holds; `bases`: of adapted weights without their adapters; `reserved`: what a vLLM engine takes for weights, keys
    and values together, whatever it needs of it."""
    whole = share(item * shape.parameters, parts)
    weights: dict[str, int] = {"weights": whole + bases}
    cache = {"KV cache": share(kv_cache(shape, item, serving), parts), "activations": decoding(shape, item, serving)}
    if reserved is not None:
        weights, cache = weights | {"KV cache": max(0, reserved - weights["weights"])}, {}
    passes: dict[str, Items] = {"transfer": {"transfer": transfer}, "rollout": cache, "score": {}, "update": {}}
    process = CONTEXT_GPU if place.on_gpu else PROCESS_CPU["rollout"]
    return _worker(place, process, {"weights": whole}, weights, passes, held_back={})


def _kept(held: States, zero: Zero) -> Items:
    """What is there in every phase of a role that shares with nobody."""
    kept = {"weights": held.weights, "optimizer": held.optimizer}
    kept |= {"gradients": held.always}
    if zero.stage == 3:
        kept |= {"buffers": zero.item * zero.reduce_bucket}
    return {name: size for name, size in kept.items() if size}


def _update(shape: Shape, elements: ParameterCounts, zero: Zero, held: States, work: Training) -> Items:
    """What comes on top in the larger of two moments: in the backward pass, or in the optimiser step behind it."""
    gradients = held.gradients - held.always
    # A tied output layer's gradient waits for that of the embedding, which has the same shape.
    largest = zero.item * elements.largest * (2 if shape.tied and work.vocabulary else 1)
    backward = {
        "gradients": gradients + largest,
        "buffers": held.gathered
        + held.buckets
        + zero.item * elements.unpacked
        - (zero.item * zero.reduce_bucket if zero.stage == 3 else 0),
        "activations": kept_activations(shape, zero.item, work.total, work.checkpointed),
        "logits": logits(shape, zero.item, work.rows, work.scaled, training=True),
    }
    step = {"gradients": gradients + held.step}
    return max((backward, step), key=lambda items: sum(items.values()))


def _worker(
    place: RolePlacement,
    process: int,
    start: Items,
    kept: Items,
    passes: Mapping[str, Items],
    held_back: Items,
    host: Items | None = None,
) -> WorkerEstimate:
    """`kept` in every phase, and what comes on top in each, with the process itself; for a role that shares its GPU
    without what has left for the host.

    `held_back`: what goes to the host when it leaves (an engine's weights are dropped).
    """
    device: dict[str, Items] = {"start": _sum({"process": process}, start)}
    beside: dict[str, Items] = {"start": _sum({"process": PROCESS_GPU}, host or {})}
    for phase, items in passes.items():
        whole = _sum(kept, items) if place.on_gpu else _on_cpu(kept, phase, passes)
        here, away = (whole, {}) if not place.shares else _residents(place, phase, whole, held_back)
        device[phase] = _sum({"process": process}, here)
        beside[phase] = _sum({"process": PROCESS_GPU}, host or {}, {"made room": sum(away.values())} if away else {})
    return WorkerEstimate(place.role, place.count, place.gpus, device, beside if place.on_gpu else {}, place.shares)


def _on_cpu(kept: Items, phase: str, passes: Mapping[str, Items]) -> Items:
    """In a process on a CPU: pages of Ray's shared memory count for it from when it first touched them, and its heap is
    larger than what is in it."""
    passing = {} if phase == "transfer" else passes[phase]
    return _sum(kept, passes["transfer"], passing, {"heap": int(HEAP * sum(passing.values()))})


def _residents(place: RolePlacement, phase: str, items: Items, held_back: Items) -> tuple[Items, Items]:
    """(on the device, on the host) of a role that shares. On a CPU only an engine that sleeps gives anything up."""
    if phase == "start" or (not place.on_gpu and place.role != "rollout"):
        return items, {}
    needed = PHASE_NEEDS[phase].get(place.role, ())
    if not needed:
        return {}, held_back
    if "optimizer" in needed or place.role not in PHASE_NEEDS["update"]:
        return items, {}
    left = {name: size for name, size in held_back.items() if name != "weights"}
    here = {name: size - left.get(name, 0) for name, size in items.items()}
    return here, {name: size for name, size in left.items() if name != "buffers"}


def _sum(*parts: Items) -> Items:
    found: dict[str, int] = {}
    for part in parts:
        for name, size in part.items():
            found[name] = found.get(name, 0) + size
    return {name: size for name, size in found.items() if size}
