"""A plan as tables for a person, and as a tree for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai_dist.config.demand import demand_line
from cai_dist.config.stages import PPO
from cai_dist.plan.build import RunPlan, StagePlan
from cai_dist.plan.machines import Load
from cai_dist.plan.shapes import Shape
from cai_dist.plan.stage_times import ANSWERS
from cai_dist.plan.suggest import Suggestion
from cai_dist.plan.workers import ITEMS, PHASES, WorkerEstimate

GIB = 2**30
_SHORT = {"optimizer": "optim", "gradients": "grads", "activations": "activ", "process": "proc", "KV cache": "KV"}
"""Names of items that leave room for a table of 120 columns."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Unit:
    """The unit of all tables of a plan."""

    name: str
    size: int

    def text(self, size: float) -> str:
        """Bytes in this unit, three figures or so."""
        found = size / self.size
        return f"{found:.0f}" if self.name == "MiB" or found >= 100 else f"{found:.2f}"


def unit_of(plan: RunPlan) -> Unit:
    """MiB where no worker takes 10 GiB."""
    largest = max(worker.peak() for one in plan.stages for worker in one.stage.workers)
    return Unit("GiB", GIB) if largest >= 10 * GIB else Unit("MiB", 2**20)


def gib(size: float) -> str:
    """Bytes in GiB."""
    return Unit("GiB", GIB).text(size)


def headline(plan: RunPlan) -> list[str]:
    """Machines, models and lengths, a line each."""
    machines, config = plan.machines, plan.config
    gpus = f"{machines.nodes} x {machines.gpus} GPUs" if machines.gpus else "no GPUs"
    memory = f" of {gib(machines.gpu_memory)} GiB" if machines.gpus and machines.gpu_memory else ""
    host = f", {gib(machines.cpu_memory)} GiB of host memory a node" if machines.cpu_memory else ""
    cpus = f", {machines.cpus} CPUs a node" if machines.cpus else ""
    models: dict[Shape, list[str]] = {}
    for name, shape in plan.shapes.items():
        if name in ("assistant", "pretrained", "feedback") or name in config.ppo.roles:
            models.setdefault(shape, []).append(name)
    lines = [f"machines: {machines.nodes} {'node' if machines.nodes == 1 else 'nodes'}, {gpus}{memory}{host}{cpus}"]
    for shape, names in models.items():
        lines.append(
            f"model {shape.name}: {shape.parameters / 1e9:.3g} G parameters, {config.models.dtype}: {', '.join(names)}"
        )
    lines.append(f"a sample of PPO is counted as {plan.sequence} tokens")
    lines.append(demand_line(config))
    return lines


def worker_tables(plan: RunPlan) -> Iterator[Table]:
    """One for each stage: bytes of one worker of each role in the phases in which something changes."""
    unit = unit_of(plan)
    for one in plan.stages:
        rows = [row for worker in one.stage.workers for row in _worker_rows(worker, unit)]
        used = [i for i in range(len(rows[0])) if any(row[i] != "-" for row in rows)]
        names = ["role", "phase", *(_SHORT.get(name, name) for name in ITEMS), "sum", "host"]
        columns = [names[i] for i in used]
        kept = [[row[i] for i in used] for row in rows]
        yield Table(f"{one.stage.name}: one worker, {unit.name} ({_where(one)})", columns, kept)


def _where(one: StagePlan) -> str:
    return "on its GPU" if any(worker.gpus for worker in one.stage.workers) else "its process, on the CPU"


def _worker_rows(worker: WorkerEstimate, unit: Unit) -> Iterator[list[str]]:
    before: Mapping[str, int] | None = None
    for phase in PHASES:
        if phase not in worker.device:
            continue
        items = worker.device[phase]
        if items == before:
            continue
        before = items
        cells = [unit.text(items[name]) if items.get(name) else "-" for name in ITEMS]
        host = unit.text(sum(worker.host[phase].values())) if worker.host else "-"
        yield [f"{worker.role} x {worker.count}", phase, *cells, unit.text(sum(items.values())), host]


def load_table(plan: RunPlan) -> Table:
    """Every GPU and host of every stage, those that are alike in one row."""
    rows: list[list[str]] = []
    unit = unit_of(plan)
    for one in plan.stages:
        alike: dict[tuple[Any, ...], list[Load]] = {}
        for load in one.loads.all:
            roles = tuple(who.partition("[")[0] for who in load.who)
            alike.setdefault((load.name.split()[0], roles, tuple(load.phases.items())), []).append(load)
        for same in alike.values():
            rows.append(_load_row(one.stage.name, same, unit))
    return Table(f"places, {unit.name}", ["place", "stage", "workers", *PHASES, "limit", "verdict"], rows)


def _load_row(stage: str, same: list[Load], unit: Unit) -> list[str]:
    first = same[0]
    kind, number = first.name.split()
    place = f"{kind} {number}" if len(same) == 1 else f"{kind} {number}-{same[-1].name.split()[1]}"
    roles: dict[str, int] = {}
    for who in first.who:
        role = who.partition("[")[0]
        roles[role] = roles.get(role, 0) + 1
    who = ", ".join(role if count == 1 else f"{count} {role}" for role, count in roles.items())
    phases = [unit.text(first.phases[phase]) if phase in first.phases else "-" for phase in PHASES]
    return [place, stage, who, *phases, unit.text(first.limit) if first.limit else "-", first.verdict or "not judged"]


def batch_lines(plan: RunPlan) -> Iterator[str]:
    """The batch identity of every stage that trains."""
    if plan.equation:
        yield f"ppo: {plan.equation}"
    for one in plan.stages:
        for split in one.stage.splits:
            name = f"{one.stage.name}: {split.role}" if split.role != one.stage.name else split.role
            yield f"  {name}: {split.equation()}" if one.stage.name == PPO else f"{name}: {split.equation()}"


def verdict_of(plan: RunPlan) -> str:
    """The verdict, and what to give where there is none on GPUs or hosts."""
    asked = max(one.loads.needed_gpus for one in plan.stages)
    if plan.verdict is None and asked:
        per_node = "" if plan.machines.gpus else f"--gpus-per-node {-(-asked // plan.machines.nodes)} "
        return (
            f"not judged: the run asks for {asked} GPUs; say what they are: {per_node}--gpu-memory GB (of each), or "
            "cluster.hardware"
        )
    if plan.verdict is None:
        return "not judged: say what a node has: --cpu-memory GB"
    places = {"GPUs": plan.machines.gpu_memory, "hosts": plan.machines.cpu_memory}
    unknown = {"GPUs": "--gpu-memory GB", "hosts": "--cpu-memory GB"}
    left = [name for name, memory in places.items() if memory is None and (name == "hosts" or asked)]
    return plan.verdict + "".join(f" ({name} are not judged: {unknown[name]})" for name in left)


def time_lines(plan: RunPlan) -> Iterator[str]:
    """Expected seconds of an iteration of PPO."""
    found = plan.seconds
    if found is None:
        if plan.ppo is not None:
            yield "no rates: give a finished run's folder or a file with --rates"
        return
    ppo = plan.config.ppo
    seconds = found.total(ppo.schedule)
    beside = " (one_step_off: rollout beside score and update)" if ppo.schedule == "one_step_off" else ""
    moves = f", to hosts and back {_seconds(found.moves)}" if found.moves else ""
    score = f", score {_seconds(found.score)}" if found.score else " (with scoring)"
    yield (
        f"an iteration: rollout {_seconds(found.rollout)}{score}, update {_seconds(found.update)}, "
        f"transfer {_seconds(found.transfer)}{moves}: {_seconds(seconds)}{beside}; "
        f"{ppo.iterations} iterations: {_seconds(seconds * ppo.iterations)}"
    )
    yield f"rates: {found.source}"


def stage_time_line(plan: RunPlan) -> Iterator[str]:
    """Expected seconds of the other stages, in one line."""
    parts = []
    for one in plan.stages:
        took = plan.stage_seconds.get(one.stage.name)
        if took is not None:
            what = f"a step of {one.stage.splits[0].batch}" if one.stage.splits else f"{ANSWERS} answers"
            parts.append(f"{one.stage.name} {_seconds(took)} ({what})")
    if parts:
        yield f"other stages: {', '.join(parts)}"


def disk_lines(plan: RunPlan) -> Iterator[str]:
    """What the run folder takes."""
    disk = plan.disk
    unit = Unit("GiB", GIB) if disk.peak >= 10 * GIB else Unit("MiB", 2**20)
    models = ", ".join(f"{name} {unit.text(size)}" for name, size in disk.models.items())
    saved = ", ".join(f"{name} {unit.text(size)}" for name, size in disk.checkpoints.items())
    yield f"disk, {unit.name}: at most {unit.text(disk.peak)}, in {disk.fullest}; what stays: {models}"
    yield f"  a checkpoint: {saved}; two of a stage are kept until it is finished, a third while it is written"


def _seconds(number: float) -> str:
    if number < 120:
        return f"{number:.2g} s" if number < 10 else f"{number:.0f} s"
    return f"{number / 60:.0f} min" if number < 7200 else f"{number / 3600:.1f} h"


def as_tree(plan: RunPlan, suggestion: Suggestion | None, others: Sequence[Suggestion] = ()) -> dict[str, Any]:
    """Everything, for JSON; sizes in bytes, times in seconds."""
    return {
        "verdict": plan.verdict,
        "problems": list(plan.problems),
        "remarks": list(plan.remarks),
        "machines": asdict(plan.machines),
        "sequence": plan.sequence,
        "models": {name: asdict(shape) | {"parameters": shape.parameters} for name, shape in plan.shapes.items()},
        "stages": {
            one.stage.name: {
                "workers": [asdict(worker) for worker in one.stage.workers],
                "batches": [asdict(split) | {"equation": split.equation()} for split in one.stage.splits],
                "needed_gpus": one.loads.needed_gpus,
                "places": [asdict(load) | {"peak": load.peak, "verdict": load.verdict} for load in one.loads.all],
            }
            for one in plan.stages
        },
        "batch": plan.equation,
        "seconds": None if plan.seconds is None else asdict(plan.seconds),
        "stage_seconds": dict(plan.stage_seconds),
        "disk": asdict(plan.disk),
        "suggestion": None if suggestion is None else asdict(suggestion),
        "other_suggestions": [asdict(one) for one in others],
    }
