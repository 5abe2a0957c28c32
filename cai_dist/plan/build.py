"""The plan of a run: every stage with its workers, machines and batches; times, verdict and a way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cai_dist.config.checks.placement import placement_warnings
from cai_dist.config.demand import demands
from cai_dist.config.run import RunConfig
from cai_dist.config.stages import PPO
from cai_dist.plan.batches import rollout_equation
from cai_dist.plan.disk import Disk, disk_of
from cai_dist.plan.machines import Load, Loads, Machines, Verdict, place
from cai_dist.plan.rates import H100, Rates, Seconds, seconds
from cai_dist.plan.roles import Assumed, PlannedStage, other_stages, ppo_stage, shapes, tokens_of
from cai_dist.plan.shapes import Shape
from cai_dist.plan.stage_times import answers_seconds, longest_answer, step_seconds
from cai_dist.plan.ways import way_out


@dataclass(frozen=True)
class StagePlan:
    """A stage and where its workers stand."""

    stage: PlannedStage
    loads: Loads


@dataclass(frozen=True)
class RunPlan:
    """What a run will take."""

    config: RunConfig
    shapes: Mapping[str, Shape]
    machines: Machines
    sequence: int
    """Tokens of a sample of PPO that the plan counts with."""
    stages: tuple[StagePlan, ...]
    seconds: Seconds | None
    """Of one iteration of PPO; None without rates."""
    rates: Rates | None
    problems: tuple[str, ...]
    """One line for everything that does not fit, with the way out."""
    remarks: tuple[str, ...]
    equation: str
    """The batch identity of PPO; empty where the run has none."""
    disk: Disk
    stage_seconds: Mapping[str, float]
    """Of one step of each stage that trains one model, and of a thousand answers; empty without rates."""

    @property
    def ppo(self) -> StagePlan | None:
        """The stage PPO, where the run has it."""
        return next((one for one in self.stages if one.stage.name == PPO), None)

    @property
    def verdict(self) -> Verdict | None:
        """The worst of all loads; None where no limit is known."""
        found = {load.verdict for one in self.stages for load in one.loads.all}
        if self.problems or "does not fit" in found:
            return "does not fit"
        return "tight" if "tight" in found else "fits" if "fits" in found else None


def make_plan(config: RunConfig, machines: Machines, assumed: Assumed, rates: Rates | None = None) -> RunPlan:
    """Arithmetic on the run file and the shapes of its models. Raises ConfigError as the run itself would, and for a
    model whose shape is not known. `rates`: default those assumed for an H100 where PPO has GPUs and bf16."""
    found = shapes(config, assumed)

    def placed(config: RunConfig) -> tuple[StagePlan, ...]:
        stages = [ppo_stage(config, found, assumed, machines)] if PPO in config.stages else []
        stages += other_stages(config, found, assumed, machines)
        return tuple(StagePlan(stage, place(stage.workers, stage.groups, machines)) for stage in stages)

    planned, ppo = placed(config), config.ppo
    tokens = tokens_of(config, assumed, ppo.longest_response)
    if rates is None and (machines.gpus or ppo.placement.policy.gpus) and config.models.dtype == "bf16":
        rates = H100
    times = None
    if rates is not None and PPO in config.stages and (ppo.placement.policy.gpus or rates.per == "all"):
        times = seconds(config, found, tokens, rates, planned[0].stage.workers)
    equation = ""
    if PPO in config.stages:
        equation = rollout_equation(ppo.prompts_per_iteration, ppo.samples_per_prompt, ppo.mini_batch, ppo.epochs)
    return RunPlan(
        config=config,
        shapes=found,
        machines=machines,
        sequence=tokens.sequence,
        stages=planned,
        seconds=times,
        rates=rates,
        problems=tuple(_problems(config, planned, machines, placed)),
        remarks=tuple(_remarks(config, planned, machines)),
        equation=equation,
        disk=disk_of(config, found),
        stage_seconds={} if rates is None else _stage_seconds(config, found, assumed, planned, rates),
    )


def _stage_seconds(
    config: RunConfig, shapes: Mapping[str, Shape], assumed: Assumed, stages: tuple[StagePlan, ...], rates: Rates
) -> dict[str, float]:
    found = {}
    for one in stages:
        if one.stage.splits and one.stage.name != PPO:
            tokens = tokens_of(config, assumed, config.revise.sampling.max_new_tokens)
            found[one.stage.name] = step_seconds(one.stage, shapes["pretrained"], tokens, rates)
        elif not one.stage.splits:
            tokens = tokens_of(config, assumed, longest_answer(config))
            found[one.stage.name] = answers_seconds(config, one.stage, shapes, tokens, rates)
    return found


def _problems(
    config: RunConfig,
    stages: tuple[StagePlan, ...],
    machines: Machines,
    placed: Callable[[RunConfig], tuple[StagePlan, ...]],
) -> list[str]:
    """One line for each stage that asks for too many CPUs or GPUs, and for the first of the like places that are too
    full."""
    lines = [
        f"{one.stage}: asks for {one.cpus:g} CPUs of {machines.nodes * machines.cpus} ({one.why}); lower cpus, or "
        "workers and ranks"
        for one in demands(config)
        if machines.cpus is not None and one.cpus > machines.nodes * machines.cpus
    ]
    there = machines.nodes * machines.gpus
    for one in stages:
        name = one.stage.name
        if machines.gpus and one.loads.needed_gpus > there:
            way = (
                "let roles share (ppo.placement.mode), or lower workers and ranks"
                if name == PPO
                else "lower workers or ranks"
            )
            lines.append(f"{name}: asks for {one.loads.needed_gpus} GPUs of {there}; {way}")
        for loads in (one.loads.gpus, one.loads.hosts):
            bad: dict[tuple[str, ...], Load] = {}
            for load in loads:
                if load.verdict == "does not fit":
                    bad.setdefault(tuple(who.partition("[")[0] for who in load.who), load)
            lines += [_too_full(config, one.stage, load, placed) for load in bad.values()]
    return lines


def _too_full(
    config: RunConfig, stage: PlannedStage, load: Load, placed: Callable[[RunConfig], tuple[StagePlan, ...]]
) -> str:
    """Its start goes first: what does not come up is not helped by less to do."""
    assert load.limit is not None
    where = f"{stage.name}: {load.name} ({', '.join(load.who[:3])}{', …' if len(load.who) > 3 else ''})"
    phase = "start" if load.phases.get("start", 0) > load.limit else load.fullest
    when = f" in phase {phase}" if len(set(load.phases.values())) > 1 else ""
    need = f"takes {load.phases[phase] / 2**30:.1f} GiB{when} of {load.limit / 2**30:.1f}"

    def bytes_with(other: RunConfig) -> int:
        return _like(next(one for one in placed(other) if one.stage.name == stage.name), load)

    return f"{where} {need}; {way_out(config, stage, load, phase, bytes_with)}"


def _like(plan: StagePlan, load: Load) -> int:
    """Bytes of the fullest place of the kind of `load` with one of its roles; 0 where these roles are not there."""
    roles = {who.partition("[")[0] for who in load.who}
    places = plan.loads.hosts if load.name.startswith("host") else plan.loads.gpus
    found = [other.peak for other in places if roles & {who.partition("[")[0] for who in other.who}]
    return max(found, default=0)


def _remarks(config: RunConfig, stages: tuple[StagePlan, ...], machines: Machines) -> list[str]:
    lines = [
        f"{one.stage.name}: {split.role}: {split.remark()}"
        for one in stages
        for split in one.stage.splits
        if split.remark()
    ]
    if PPO in config.stages:
        lines += placement_warnings(config.ppo)
    if machines.gpus and not any(one.loads.needed_gpus for one in stages):
        lines.append(
            "this run asks for no GPU: set cluster.gpus and ppo.placement.<role>.gpus to 1, or see the suggestion"
        )
    if config.engine.backend == "vllm":
        lines.append("vLLM takes gpu_memory_utilization of the GPU whatever it needs; on a CPU it was not measured")
    return lines
