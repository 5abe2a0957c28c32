"""Simulated workers for `scale.py`: many in each Ray actor process; every call is a real actor call with real payloads.

A `Handle` stands where a worker group has an actor. Its arguments are pickled as Ray would pickle them and counted; in
the host process the worker waits its turn (one call after the other, as a real one) and sleeps what the cost model
says; answers have the types and lengths of real ones and are counted as the driver unpickles them. What workers keep is
a reference here, with nothing behind it.
"""

from __future__ import annotations

import asyncio
import copyreg
import io
import itertools
import pickle
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef, cloudpickle

from cai_dist.cluster.actor import Arrival, CallArguments
from cai_dist.cluster.placement import GroupSpec
from cai_dist.cluster.runtime import Cluster
from cai_dist.experience.moments import Moments
from cai_dist.experience.token_weights import RatioSums
from cai_dist.experience.trajectories import Sums, TrajectoryRequest
from cai_dist.types import GenerateRequest, KeepRemote, StepShard, TensorSpec, WeightPlan

LAYERS, WIDTH, INNER, KEYS = 80, 8192, 28672, 1024  # of a Llama-3 70B; only names and shapes travel through the driver
PROMPT = 128
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Costs:
    """Seconds of work, as shares of one iteration of `iteration` seconds, whatever the number of workers and tokens: so
    what differs between two runs is the control plane."""

    iteration: float
    response: int
    """Mean tokens of a response; they are 1/2 to 3/2 of it long."""
    generate: float = 0.5
    score: float = 0.1
    update: float = 0.35
    transfer: float = 0.05
    start: float = 0.0
    """Seconds of import, and again of building, of every worker."""

    def length(self, prompt: tuple[int, ...]) -> int:
        """Of the response: a function of the prompt."""
        return random.Random(hash(prompt)).randint(self.response // 2, self.response * 3 // 2)


@dataclass(frozen=True)
class Load:
    """What one worker of a role expects to do in an iteration: tokens generated one after the other, scored, trained
    on."""

    generate: float = 1.0
    score: float = 1.0
    update: float = 1.0


@dataclass
class Tally:
    """What went through the driver."""

    out: int = 0
    back: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    out_of: Counter[str] = field(default_factory=Counter)
    back_of: Counter[str] = field(default_factory=Counter)


TALLY = Tally()


SIZES: dict[bytes, list[int]] = {}
"""In the driver: tokens of every row that a worker keeps, by the reference. So that the time of a call is known without
fetching what it is about."""
REFERENCES = 10_000
"""Of a host: more than it hands out in an iteration."""
REFERENCE = 162
"""Bytes that a reference takes in a message (Ray 2.60: id, owner's address, state), measured by `reference_bytes`."""


class Packed:
    """An answer as Ray pickles it; becomes what it is when the driver reads it, and is counted. Beside it, not counted,
    travel the sizes of the rows that are kept under `ref`."""

    def __init__(self, method: str, value: Any, ref: Any = None, sizes: list[int] | None = None) -> None:
        self._method, self._blob = method, cloudpickle.dumps(value, protocol=5)
        self._kept = (ref.binary(), sizes) if ref is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self._method, self._blob, self._kept)


def _unpacked(method: str, blob: bytes, kept: tuple[bytes, list[int]] | None) -> Any:
    size = len(blob)
    if kept is not None:
        SIZES[kept[0]] = kept[1]
        size += REFERENCE
    TALLY.back += size
    TALLY.back_of[method] += size
    return cloudpickle.loads(blob)


def reference_bytes() -> int:
    """What one more reference adds to a message."""
    context = ray._private.worker.global_worker.get_serialization_context()
    refs = [ray.put(number) for number in range(11)]
    return round((len(context.serialize(refs).to_bytes()) - len(context.serialize(refs[:1]).to_bytes())) / 10)


class _Pickler(pickle.Pickler):
    """As Ray pickles arguments, but for references: `refs` collects them."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=5)
        self.refs: list[Any] = []
        self.dispatch_table = {**copyreg.dispatch_table, ObjectRef: self._number}

    def _number(self, ref: Any) -> tuple[Any, ...]:
        self.refs.append(ref)
        return int, (len(self.refs) - 1,)


@dataclass(frozen=True)
class Done:
    """A simulated call: how long it was to take."""

    role: str
    rank: int
    method: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Calls of all workers of a host, and CPU seconds of its process."""

    calls: list[Done]
    cpu: float


class Host:
    """An async Ray actor with many simulated workers, by (role, rank)."""

    def __init__(self, costs: Costs, loads: dict[str, Load]) -> None:
        self._costs, self._loads = costs, loads
        self._turns: dict[tuple[str, int], asyncio.Lock] = {}
        self._spans: dict[tuple[str, int], list[tuple[str, float, float]]] = {}
        self._done: list[Done] = []
        self._refs = itertools.cycle([ray.put(None) for _ in range(REFERENCES)])
        self._version, self._used = -1, time.process_time()
        self._floats = [-random.random() for _ in range(100)]

    async def prepare(self, who: tuple[str, int], leads: bool) -> Arrival:
        """An import that takes its time."""
        self._turns[who], self._spans[who] = asyncio.Lock(), []
        await asyncio.sleep(self._costs.start)
        return Arrival("127.0.0.1", ray.get_runtime_context().get_node_id(), "127.0.0.1", 1 if leads else 0)

    async def build(self, who: tuple[str, int], blob: bytes) -> None:
        """Construct a worker of nothing."""
        cloudpickle.loads(blob)
        await asyncio.sleep(self._costs.start)

    async def where(self, who: tuple[str, int]) -> tuple[str, tuple[str, ...]]:
        """As of a worker without GPUs."""
        return "127.0.0.1", ()

    async def report(self, who: tuple[str, int], memory: bool) -> Packed:
        """What this worker has done since this was last asked."""
        found, self._spans[who] = self._spans[who], []
        return Packed("report", (found, self._answer(who[0], "memory", [], b"") if memory else {}))

    async def done(self) -> Report:
        """For the measurement: what happened here since this was last asked."""
        used = time.process_time()
        found = Report(self._done, used - self._used)
        self._done, self._used = [], used
        return found

    async def call(self, asked: tuple[tuple[str, int], str, str, list[int], bytes, list[Any]]) -> Any:
        """Wait for the worker's turn, sleep, answer."""
        who, phase, method, sizes, blob, _ = asked
        async with self._turns[who]:
            start = time.time()
            seconds = self._seconds(who[0], method, sizes, blob)
            if seconds:
                await asyncio.sleep(seconds)
            answer = self._answer(who[0], method, sizes, blob)
            self._spans[who].append((phase, start, time.time()))
            self._done.append(Done(*who, method, seconds))
            if not isinstance(answer, KeepRemote):
                return Packed(method, answer)
            # A reference as of a real answer, made beforehand and with nothing behind it: to make rows and to store
            # them is work of the workers, in reality each on its own node, and nobody fetches them here.
            ref = next(self._refs)
            return ref, Packed(method, answer.facts, ref, list(answer.rows))

    def _seconds(self, role: str, method: str, sizes: list[int], blob: bytes) -> float:
        costs, load = self._costs, self._loads[role]
        if method == "sample":
            (request,) = cloudpickle.loads(blob)
            longest = max(costs.length(prompt) for prompt in request.prompts)
            return costs.iteration * costs.generate * longest / load.generate
        if method in ("logprobs", "values", "scores"):
            return costs.iteration * costs.score * sum(sizes) / load.score
        if method == "train_step":
            return costs.iteration * costs.update * sum(sizes) / load.update
        return costs.iteration * costs.transfer if method in ("broadcast_weights", "take_broadcast") else 0.0

    def _answer(self, role: str, method: str, sizes: list[int], blob: bytes) -> Any:
        if method == "sample":
            (request,) = cloudpickle.loads(blob)
            facts = [self._facts(prompt, request) for prompt in request.prompts]
            return KeepRemote([prompt + response for prompt, response, *_ in facts], facts)
        if method in ("logprobs", "values"):
            return KeepRemote(sizes)
        if method == "make_trajectories":
            tokens = sum(sizes) - PROMPT * len(sizes)
            moments, ratios = Moments(tokens, 0.0, float(tokens)), RatioSums(tokens, tokens, 1.0, 0, tokens, tokens)
            return KeepRemote(sizes, Sums(tokens, 0.0, 0.0, -1.0, moments, moments, moments, ratios=ratios))
        if method == "scores":
            return [self._floats[size % 100] for size in sizes]
        if method == "train_step":
            names = ("loss", "approx_kl", "ratio", "clipped", "grad_norm", "lr", "entropy", "tokens")
            return dict(zip(names, self._floats, strict=False))
        if method == "memory":
            return {"peak_mb": 60_000.0, "now_mb": 50_000.0}
        if method == "weight_plan":
            return plan_70b()
        if method == "begin_weights":
            self._version = cloudpickle.loads(blob)[0]
        return None

    def _facts(self, prompt: tuple[int, ...], request: GenerateRequest) -> tuple[int, int, str, int, int]:
        """As `kept_samples` gives them."""
        length = self._costs.length(prompt)
        finish = "length" if length == request.sampling.max_new_tokens else "stop"
        return len(prompt), length, finish, self._version, self._version


def plan_70b() -> WeightPlan:
    """All tensors of a 70B model in bf16, each a bucket of its own: what a plan holds at that size."""
    square, wide, narrow = (WIDTH, WIDTH), (INNER, WIDTH), (KEYS, WIDTH)
    block = {"q": square, "k": narrow, "v": narrow, "o": square, "gate": wide, "up": wide, "down": (WIDTH, INNER)}
    block |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
    shapes = {"model.embed_tokens.weight": (128_256, WIDTH), "lm_head.weight": (128_256, WIDTH)}
    shapes |= {f"model.layers.{n}.{name}.weight": s for n in range(LAYERS) for name, s in block.items()}
    specs = tuple(TensorSpec(name, s, "bfloat16", 2 * s[0] * (s[1] if len(s) > 1 else 1)) for name, s in shapes.items())
    return WeightPlan(specs, tuple((spec,) for spec in specs))


class Handle:
    """In place of the actor of one worker."""

    def __init__(self, host: Any, role: str, rank: int) -> None:
        self._host, self._who = host, (role, rank)
        self.prepare, self.build = _Method(self._prepare), _Method(self._build)
        self.where, self.report = _Method(self._where), _Method(self._report)
        self.call = _Method(self._call)

    def _prepare(self, target: str, store_timeout: float | None, loopback: bool) -> Any:
        return self._host.prepare.remote(self._who, store_timeout is not None)

    def _build(self, *args: Any) -> Any:
        blob = cloudpickle.dumps(args, protocol=5)
        _count("build", len(blob))
        return self._host.build.remote(self._who, blob)

    def _where(self) -> Any:
        return self._host.where.remote(self._who)

    def _report(self, memory: bool) -> Any:
        _count("report", 1)
        return self._host.report.remote(self._who, memory)

    def _call(self, asked: CallArguments, *fetched: Any) -> Any:
        phase, method, args = asked
        # References stay so: each node would fetch what they stand for from another node's store, not from the driver.
        blob, refs = _counted(method, (*args, *fetched))
        return self._host.call.remote((self._who, phase, method, _sizes(args), blob, refs))


class _Method:
    """`handle.method.remote(...)`."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote


def _counted(method: str, args: tuple[Any, ...]) -> tuple[bytes, list[Any]]:
    """Arguments pickled, and the references in them."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(args)
    blob = file.getvalue()
    _count(method, len(blob) + REFERENCE * len(pickler.refs))
    return blob, pickler.refs


def _count(method: str, size: int) -> None:
    TALLY.calls[method] += 1
    TALLY.out += size
    TALLY.out_of[method] += size


def _sizes(args: tuple[Any, ...]) -> list[int]:
    """Tokens of the samples that a call is about, in their order."""
    if not args or not isinstance(args[0], StepShard | TrajectoryRequest):
        return []
    rows = args[0].rows() if isinstance(args[0], StepShard) else args[0].samples
    return [SIZES[row.block.ref.binary()][row.number] for row in rows]


class SimulatedCluster(Cluster):
    """A real cluster with real placement groups whose workers are simulated; `hosts` processes hold them."""

    hosts: list[Any]

    def host(self, count: int, costs: Costs, loads: dict[str, Load]) -> None:
        """Start the processes. Before `launch`."""
        kind = ray.remote(Host).options(num_cpus=0, max_concurrency=10_000, enable_task_events=False)
        self.hosts = [kind.remote(costs, loads) for _ in range(count)]
        ray.get([host.done.remote() for host in self.hosts])

    def _actor(self, spec: GroupSpec, rank: int, placement: Any, gpus: float) -> Handle:
        return Handle(self.hosts[rank % len(self.hosts)], spec.role, rank)

    def __exit__(self, *args: Any) -> None:
        self._groups.clear()  # handles are no actors to be killed: all goes with Ray
        super().__exit__(*args)
