"""Workers of the stages of a run file: which model, how sharded, how many tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cai_dist.config.run import RunConfig
from cai_dist.config.stages import DPO, GENERATING, PPO, PREFERENCE, SFT
from cai_dist.config.training import LoraConfig, ShardingConfig, TrainConfig
from cai_dist.errors import ConfigError
from cai_dist.plan.batches import BatchSplit, split
from cai_dist.plan.machines import Machines
from cai_dist.plan.passes import Serving, Tokens
from cai_dist.plan.shapes import Shape, find_shape
from cai_dist.plan.workers import (
    MIB,
    RolePlacement,
    Training,
    WorkerEstimate,
    rollout_worker,
    scoring_worker,
    trained_worker,
)
from cai_dist.plan.zero import ITEM, ParameterCounts, read_zero

SOURCES: Mapping[str, str] = {
    "policy": "pretrained",
    "reference": "pretrained",
    "rollout": "pretrained",
    "reward": "pretrained",
    "value": "pretrained",
}
"""Which of `models.*` a role's shape comes from: SL-CAI and the preference model are made of the pretrained one."""
NAMES = ("assistant", "pretrained", "feedback", *SOURCES)
"""What `--model NAME=SHAPE` knows."""


@dataclass(frozen=True)
class Assumed:
    """What a plan is asked about beside the run file. `models`: shapes by name of a model or role; `prompt`: tokens of
    every prompt (None: as many as `models.context` leaves)."""

    models: Mapping[str, str]
    prompt: int | None = None


@dataclass(frozen=True)
class PlannedStage:
    """The workers of a stage that are there at the same time."""

    name: str
    workers: tuple[WorkerEstimate, ...]
    splits: tuple[BatchSplit, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    """Roles that share GPUs."""


def shapes(config: RunConfig, assumed: Assumed) -> dict[str, Shape]:
    """Shapes of the models, by name of `models.*` and by role. Raises ConfigError for a model whose shape is not to be
    found."""
    unknown = sorted(set(assumed.models) - {*NAMES, ""})
    if unknown:
        raise ConfigError(f"--model {unknown[0]}=…: must be one of {', '.join(NAMES)}")
    found: dict[str, Shape] = {}
    for name in ("pretrained", "assistant", "feedback"):
        source = assumed.models.get(name) or assumed.models.get("") or str(getattr(config.models, name))
        found[name] = found["pretrained"] if source == "sl" else _shape(config, source, f"models.{name}")
    for role, name in SOURCES.items():
        given = assumed.models.get(role)
        found[role] = _shape(config, given, role) if given else found[name]
    return found


def _shape(config: RunConfig, source: str, what: str) -> Shape:
    if source != "world":
        return find_shape(source, what)
    from cai_dist.world.lexicon import vocabulary

    world = config.world
    head_dim = world.hidden_size // world.heads
    return Shape(
        "world", world.hidden_size, world.layers, world.heads, world.heads, head_dim, world.intermediate_size,
        len(vocabulary()), tied=False,
    )  # fmt: skip


def tokens_of(config: RunConfig, assumed: Assumed, new: int) -> Tokens:
    """Tokens of a prompt with a response of `new` tokens, of which a context has room for so many."""
    new = min(new, config.models.context - 1)
    room = config.models.context - new
    prompt = room if assumed.prompt is None else min(assumed.prompt, room)
    return Tokens(prompt + new, new)


# ---- PPO


def ppo_stage(config: RunConfig, found: Mapping[str, Shape], assumed: Assumed, machines: Machines) -> PlannedStage:
    """All roles of PPO."""
    ppo, item = config.ppo, ITEM[config.models.dtype]
    tokens = tokens_of(config, assumed, ppo.longest_response)
    shared = {role for group in ppo.shared_groups for role in group}
    transfer = _transfer_bytes(config, found["policy"])
    workers, splits = [], []
    for role in ppo.roles:
        placement, shape = getattr(ppo.placement, role), found[role]
        sharding: ShardingConfig = ppo.value if role == "value" else ppo.policy
        place = RolePlacement(role, ppo.workers_of(role), placement.gpus, role in shared)
        if role in ppo.trained_roles:
            one = split(role, ppo.mini_batch, sharding, tokens.sequence)
            splits.append(one)
            work = _training(one, tokens, role == "policy", ppo.sampling.temperature != 1.0)
            work = replace(work, checkpointed=sharding.checkpoints(place.on_gpu))
            elements = trained_elements(shape, ppo.lora, causal=role == "policy")
            zero = read_zero(sharding, config.models.dtype, getattr(ppo, f"{role}_optimizer"))
            workers.append(
                trained_worker(place, shape, elements, zero, work, transfer.sender if role == "policy" else 0)
            )
        elif role == "rollout":
            engine = config.engine
            samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
            rows = min(engine.max_rows, ppo.rollout_request(samples, place.count, engine.max_rows), samples)
            serving = limited(Serving(rows, tokens.sequence - tokens.wanted, tokens.wanted), engine.max_tokens)
            reserved = _reserved(config, place, machines)
            bases = item * shape.matrices if ppo.lora is not None and engine.backend == "hf" else 0
            split_over = replace(place, count=place.count * engine.processes)
            workers.append(
                rollout_worker(split_over, shape, item, serving, transfer.receiver, bases, reserved, engine.processes)
            )
        else:
            samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
            one = split(role, samples, ppo.passes_of(role), tokens.sequence)
            work = _training(one, tokens, role == "reference", ppo.sampling.temperature != 1.0)
            size = shape.parameters if role == "reference" else shape.scalar_parameters
            sharded = ppo.scoring(role)
            cut = None if sharded is None else read_zero(sharded, config.models.dtype, None)
            workers.append(scoring_worker(place, shape, item, size, work, cut))
    return PlannedStage(PPO, tuple(workers), tuple(splits), ppo.shared_groups)


def limited(serving: Serving, max_tokens: int | None) -> Serving:
    """The serving under `engine.max_tokens`: as many rows as their columns leave, at least one."""
    if max_tokens is None:
        return serving
    return Serving(max(1, min(serving.rows, max_tokens // serving.columns)), serving.prompt, serving.new)


def _reserved(config: RunConfig, place: RolePlacement, machines: Machines) -> int | None:
    """What a vLLM engine takes, where that is known."""
    if config.engine.backend != "vllm":
        return None
    if place.on_gpu:
        memory = machines.gpu_memory
        return None if memory is None else int(config.engine.vllm.gpu_memory_utilization * memory)
    return None


@dataclass(frozen=True)
class _Transfer:
    sender: int
    receiver: int


def _transfer_bytes(config: RunConfig, shape: Shape) -> _Transfer:
    """Of weights that are on their way, in the process (or on the device) of a policy rank and of an engine.

    With `object_store` on a CPU the buckets come to lie all over Ray's shared memory, so that in time a process has
    touched as much of it as it sends or takes; with GPUs they go through the host, piece by piece.
    """
    ppo, item = config.ppo, ITEM[config.models.dtype]
    whole, ranks = item * shape.parameters, ppo.policy.ranks
    bucket = min(whole, max(int(ppo.transfer_bucket_mb * MIB), item * shape.largest))
    if ppo.transfer == "shared_memory":
        return _Transfer(whole // ranks, whole)
    if ppo.transfer == "broadcast":
        return _Transfer(2 * bucket // ranks, 2 * bucket // ranks)
    on_cpu = not ppo.placement.policy.gpus
    return _Transfer(whole // ranks, whole) if on_cpu and ppo.transfer == "object_store" else _Transfer(0, 0)


def _training(one: BatchSplit, tokens: Tokens, vocabulary: bool, scaled: bool, per_item: int = 1) -> Training:
    return Training(tokens, one.micro_batch * per_item, one.passes, vocabulary, scaled, together=one.together)


def trained_elements(shape: Shape, lora: LoraConfig | None, causal: bool, with_head: bool = False) -> ParameterCounts:
    """Elements of a causal model, or of one with a scalar head (`with_head`: and an output layer). With `lora`:
    adapters on the matrices of all layers (of a mixture of experts on those of its attention), or on those that it
    names, and a scalar head are trained."""
    total = shape.parameters if causal else shape.scalar_parameters
    if with_head and not shape.tied:
        total += shape.embedding
    if lora is None:
        return ParameterCounts(total, total, shape.largest)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, f = shape.hidden, shape.intermediate
    sizes = {"q_proj": h + queries, "k_proj": h + keys, "v_proj": h + keys, "o_proj": queries + h}
    inner = 0 if shape.experts is not None else f
    if inner:
        sizes |= {"gate_proj": h + f} if shape.gated else {}
        sizes |= {"up_proj": h + f, "down_proj": f + h}
    names = sizes if lora.target_modules == "auto" else lora.target_modules
    adapters = shape.layers * lora.rank * sum(sizes.get(name, 0) for name in names)
    trained, largest = adapters + (0 if causal else h), lora.rank * max(sizes.values())
    if lora.quantization == "none":
        return ParameterCounts(total + adapters, trained, largest)
    quantised = shape.layers * shape.attention if shape.experts is not None else shape.matrices
    if lora.quantization == "nf4":  # a scale for 64 elements in a byte, one in fp32 for 256 of these
        size = quantised // 2 + quantised // 64 + quantised // 4096
    else:
        outputs = queries + 2 * keys + h + ((2 if shape.gated else 1) * inner + h if inner else 0)
        size = quantised + 4 * shape.layers * outputs
    return ParameterCounts(total + adapters, trained, largest, quantised, size, h * max(inner, queries))


# ---- other stages


@dataclass(frozen=True)
class TrainedStage:
    """A stage that trains one model. `causal`: without a scalar head; `vocabulary`: log-probabilities come out;
    `per_item`: sequences of one example."""

    name: str
    train: TrainConfig
    lora: LoraConfig | None
    causal: bool = False
    vocabulary: bool = False
    per_item: int = 1


def other_stages(
    config: RunConfig, found: Mapping[str, Shape], assumed: Assumed, machines: Machines
) -> list[PlannedStage]:
    """Each with its largest group of workers."""
    stages = [_generating(config, found, assumed, machines)]
    new = config.revise.sampling.max_new_tokens
    preference = config.preference
    jobs = [TrainedStage(SFT, config.sft.train, config.sft.lora, causal=True, vocabulary=True)]
    if PREFERENCE in config.stages:
        if config.data.ranked_answers.source != "none":
            first = preference.pretraining
            language = first.language_weight > 0
            jobs.append(TrainedStage("pm pretraining", first.train, preference.lora, vocabulary=language, per_item=2))
        jobs.append(TrainedStage(PREFERENCE, preference.train, preference.lora, per_item=2))
    if DPO in config.stages:
        jobs.append(TrainedStage(DPO, config.dpo.train, config.dpo.lora, causal=True, vocabulary=True, per_item=2))
    tokens = tokens_of(config, assumed, new)
    for job in jobs:
        name, sharding, shape = job.name, job.train.sharding, found["pretrained"]
        one = split(name, job.train.batch_size, sharding, tokens.sequence, job.per_item)
        place = RolePlacement(name, sharding.ranks, config.cluster.gpus)
        work = _training(one, tokens, job.vocabulary, False, job.per_item)
        work = replace(work, checkpointed=sharding.checkpoints(place.on_gpu))
        elements = trained_elements(shape, job.lora, job.causal, with_head=job.vocabulary and not job.causal)
        zero = read_zero(sharding, config.models.dtype, job.train.optimizer)
        worker = trained_worker(place, shape, elements, zero, work)
        kept = {phase: items for phase, items in worker.device.items() if phase in ("start", "update")}
        host = {phase: items for phase, items in worker.host.items() if phase in kept}
        stages.append(PlannedStage(name, (WorkerEstimate(name, place.count, place.gpus, kept, host),), (one,)))
    return stages


def _generating(config: RunConfig, found: Mapping[str, Shape], assumed: Assumed, machines: Machines) -> PlannedStage:
    """Revise, feedback, evaluate and expand: independent engines; the largest model among theirs, the most workers."""
    sections = [getattr(config, name) for name in GENERATING if name in config.stages]
    count = max(section.workers for section in sections)
    new = max(section.sampling.max_new_tokens for section in sections)
    names = ["assistant", "pretrained"] + (["feedback"] if "feedback" in config.own_models else [])
    shape = max((found[name] for name in names), key=lambda one: one.parameters)
    tokens = tokens_of(config, assumed, new)
    rows = min(config.engine.max_rows, max(section.shard_size for section in sections))
    serving = limited(Serving(rows, tokens.sequence - new, new), config.engine.max_tokens)
    place = RolePlacement("engine", count, config.cluster.gpus)
    reserved = _reserved(config, place, machines)
    parts = config.engine.processes
    place = replace(place, count=count * parts)
    worker = rollout_worker(place, shape, ITEM[config.models.dtype], serving, reserved=reserved, parts=parts)
    kept = {phase: items for phase, items in worker.device.items() if phase in ("start", "rollout")}
    host = {phase: items for phase, items in worker.host.items() if phase in kept}
    return PlannedStage("generation", (WorkerEstimate(place.role, count, place.gpus, kept, host),))
