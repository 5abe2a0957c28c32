"""The command `cai-dist doctor`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cai_dist.errors import EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from cai_dist.doctor.checks import Check
    from cai_dist.doctor.needs import Needs

ABOUT = "what this machine, or every node of a cluster, lacks for a run; exit code 2 if a check fails"


def add_commands(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add `doctor`; it sets `command`, which returns the exit code."""
    doctor = commands.add_parser("doctor", parents=[common], help=ABOUT, description=ABOUT)
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--address", metavar="auto|HOST:PORT", help="a Ray cluster; without, this machine alone")
    doctor.add_argument("--run", metavar="RUN.yaml", help="a run file: also what this run needs")
    doctor.add_argument("--folder", metavar="DIR", help="a folder that all nodes should share (--run: its run folder)")
    doctor.add_argument("--json", action="store_true", help="the checks as JSON")


def _doctor(arguments: argparse.Namespace) -> int:
    from cai_dist.doctor.examine import examine_cluster, examine_machine
    from cai_dist.models.cache import cache_root
    from cai_dist.tracking.console import Console

    needs = _needs(arguments)
    with Console("quiet" if arguments.json else "plain") as console:
        if arguments.address:
            checks = examine_cluster(arguments.address, needs, cache_root(), console.say)
        else:
            checks = examine_machine(needs, cache_root(), console.say)
        failed = sum(check.state == "fail" for check in checks)
        warned = sum(check.state == "warn" for check in checks)
        if arguments.json:
            print(
                json.dumps(
                    {"failed": failed, "warned": warned, "checks": [asdict(check) for check in checks]}, indent=2
                )
            )
        else:
            columns = ["node", "check", "state", "found", "what to do"]
            console.table("doctor", columns, _rows(checks), text=True)
            console.say(f"{len(checks)} checks, {failed} failed, {warned} to look at")
    return EXIT_USAGE if failed else EXIT_OK


def _needs(arguments: argparse.Namespace) -> Needs:
    from dataclasses import replace
    from pathlib import Path

    from cai_dist.config.loading.load import load_run
    from cai_dist.doctor.needs import Needs, needs_of
    from cai_dist.models.cache import cache_root

    needs = needs_of(load_run(arguments.run, []), cache_root()) if arguments.run else Needs()
    if arguments.folder:
        return replace(needs, shared=(*needs.shared, ("folder", str(Path(arguments.folder).absolute()))))
    return needs


def _rows(checks: Sequence[Check]) -> list[list[str]]:
    """What was found alike on several nodes is one row, with their names; failures come first."""
    nodes: dict[tuple[str, ...], list[str]] = {}
    for check in checks:
        nodes.setdefault((check.name, check.state, check.found, check.advice), []).append(check.node)
    order = {"fail": 0, "warn": 1, "ok": 2}
    return [[", ".join(where), *row] for row, where in sorted(nodes.items(), key=lambda item: order[item[0][1]])]
