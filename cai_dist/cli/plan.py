"""The command `cai-dist plan`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.errors import EXIT_GATE, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from cai_dist.config.run import RunConfig
    from cai_dist.plan.build import RunPlan
    from cai_dist.plan.machines import Machines
    from cai_dist.plan.rates import Rates
    from cai_dist.plan.roles import Assumed
    from cai_dist.plan.suggest import Suggestion
    from cai_dist.tracking.console import Console

ABOUT = "what a run will take, and whether it fits: memory by role and phase, batches, times; starts nothing"
_EPILOG = """\
exit codes:
  0   it fits (or nothing was said about memory)
  2   a mistake in the run file or the command
  8   the plan is made, and the run does not fit

examples:
  cai-dist plan launch/runs/llama8b-8gpu.yaml
  cai-dist plan launch/runs/llama8b-8gpu.yaml --nodes 2 --gpu-memory 141
  cai-dist plan mine.yaml ppo.policy.zero=3 --model llama-70b --nodes 8 --gpus-per-node 8 --gpu-memory 80
  cai-dist plan launch/runs/smollm2.yaml --rates runs/smollm2 --prompt-tokens 200
"""


def add_commands(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add `plan`; it sets `command`, which returns the exit code."""
    plan = commands.add_parser(
        "plan",
        parents=[common],
        help=ABOUT,
        description=ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(command=_plan)
    plan.add_argument("file", metavar="RUN.yaml", help="the run file")
    plan.add_argument(
        "overrides", metavar="key.sub=value", nargs="*", default=[], help="overrides, as of `cai-dist run`"
    )
    there = plan.add_argument_group("machines", "what is not given is as `cluster.hardware` of the run file says")
    there.add_argument("--nodes", type=_count, metavar="N", help="nodes (default 1)")
    there.add_argument("--gpus-per-node", type=_count, metavar="G", help="default: none")
    there.add_argument("--gpu-memory", type=_size, metavar="GB", help="of one GPU, in 10^9 bytes; 80 for an 80 GB card")
    there.add_argument("--cpus-per-node", type=_count, metavar="C", help="logical CPUs")
    there.add_argument(
        "--cpu-memory", type=_size, metavar="GB", help="of one node; default of a run without GPUs: this machine's"
    )
    plan.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE",
        help="a preset such as llama-8b or a folder with a config.json, in place of all models or of one (pretrained, "
        "assistant, feedback, policy, value, reference, reward, rollout)",
    )
    plan.add_argument(
        "--prompt-tokens", type=_count, metavar="N", help="of a prompt; default: what models.context leaves"
    )
    plan.add_argument("--rates", type=Path, metavar="PATH", help="a finished run's folder, or a JSON file of rates")
    plan.add_argument("--json", action="store_true", help="the plan as JSON, in bytes and seconds")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number")
    return int(text)


def _size(text: str) -> int:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of GB above 0")
    return int(found * 1e9)


def _plan(arguments: argparse.Namespace) -> int:
    from cai_dist.plan.build import make_plan
    from cai_dist.plan.roles import Assumed
    from cai_dist.plan.suggest import suggest
    from cai_dist.plan.suggest_stages import suggest_stages
    from cai_dist.tracking.console import Console

    config = _load(arguments)
    assumed = Assumed(_models(arguments.model), arguments.prompt_tokens)
    plan = make_plan(config, _machines(arguments, config), assumed, _rates(arguments, assumed))
    suggestion, others = suggest(plan, assumed), suggest_stages(plan, assumed)
    if arguments.json:
        from cai_dist.plan.show import as_tree

        print(json.dumps(as_tree(plan, suggestion, others), indent=2))
    else:
        with Console("plain") as console:
            _show(console, arguments.file, plan, [*([suggestion] if suggestion is not None else []), *others])
    return EXIT_GATE if plan.verdict == "does not fit" else EXIT_OK


def _load(arguments: argparse.Namespace) -> RunConfig:
    """The run file and what contradicts itself in it; files that it names need not be here."""
    from cai_dist.config.checks.run import check_run
    from cai_dist.config.loading.load import load_run

    config = load_run(arguments.file, arguments.overrides, elsewhere=True)
    check_run(config, ready=False, files=False, machines=False)
    return config


def _models(given: list[str]) -> dict[str, str]:
    """Name (or "": all) -> shape."""
    found: dict[str, str] = {}
    for word in given:
        name, sign, shape = word.rpartition("=")
        if sign and not name or not shape:
            raise ConfigError(f"--model {word}: must be SHAPE or NAME=SHAPE")
        found[name] = shape
    return found


def _machines(arguments: argparse.Namespace, config: RunConfig) -> Machines:
    """The machines of the command line, and of the run file where that is silent."""
    from cai_dist.plan.machines import Machines

    if arguments.nodes == 0:
        raise ConfigError("--nodes 0: must be at least 1")
    there = config.cluster.hardware
    gpus = there.gpus_per_node if arguments.gpus_per_node is None else arguments.gpus_per_node
    host = arguments.cpu_memory or _bytes(there.cpu_memory_gb)
    if host is None and not gpus and not (config.cluster.gpus or config.ppo.placement.policy.gpus):
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = arguments.gpu_memory or _bytes(there.gpu_memory_gb)
    cpus = arguments.cpus_per_node or there.cpus_per_node
    return Machines(arguments.nodes or there.nodes, gpus or 0, memory, host, cpus)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)


def _rates(arguments: argparse.Namespace, assumed: Assumed) -> Rates | None:
    if arguments.rates is None:
        return None
    from cai_dist.plan.rates import read_rates
    from cai_dist.plan.roles import Assumed, shapes

    # The run that was measured has models of its own; only its prompts are taken to be as long as those planned.
    return read_rates(arguments.rates, lambda config: shapes(config, Assumed({})), assumed.prompt)


def _show(console: Console, file: str, plan: RunPlan, suggestions: Sequence[Suggestion]) -> None:
    from cai_dist.plan import show

    console.say(f"plan of {file}: nothing is started")
    for line in show.headline(plan):
        console.say(line)
    for table in (*show.worker_tables(plan), show.load_table(plan)):
        console.table(table.title, table.columns, table.rows)
    times = (*show.time_lines(plan), *show.stage_time_line(plan))
    for line in (*show.batch_lines(plan), *times, *show.disk_lines(plan)):
        console.say(line)
    for line in plan.remarks:
        console.say(f"note: {line}")
    console.say(f"verdict: {show.verdict_of(plan)}")
    for line in plan.problems:
        console.say(f"  {line}")
    for suggestion in suggestions:
        console.say(f"suggestion: {suggestion.why}")
        for line in suggestion.lines.splitlines():
            console.say(f"  {line}")
