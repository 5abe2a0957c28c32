"""The examination: of this machine, or of every node of a cluster."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cai_dist.cluster.node_survey import Silence, Survey, joined
from cai_dist.doctor.across import (
    CLUSTER,
    ClockReading,
    check_all_reduce,
    check_clocks,
    check_reach,
    check_same,
    check_shared,
    check_tokens,
)
from cai_dist.doctor.checks import Check, check_folders, check_node, check_versions
from cai_dist.doctor.examiner import Examiner
from cai_dist.doctor.facts import NodeFacts, collect
from cai_dist.doctor.needs import Needs
from cai_dist.errors import ConfigError

HERE = "this machine"
_START_SECONDS = 60.0
_SHORT_SECONDS = 10.0
_REDUCE_SECONDS = 60.0


def examine_machine(needs: Needs, cache: Path, say: Callable[[str], None]) -> list[Check]:
    """Checks of this machine alone. `say` is told what is under way."""
    say("looking at this machine")
    facts = collect(HERE, [*needs.shared, *_cache(needs, cache)])
    checks = check_node(facts, needs, requirements())
    for backend, name, ranks in _reductions(facts):
        say(f"{name} of {ranks} processes")
        checks.append(check_all_reduce(name, HERE, ranks, _reduce_here(backend, ranks)))
    return checks


def examine_cluster(address: str, needs: Needs, cache: Path, say: Callable[[str], None]) -> list[Check]:
    """Checks of this process and every node of the cluster at `address`."""
    say(f"joining the cluster at {address}")
    try:
        with joined(address), Survey(Examiner) as survey:
            return survey_checks(survey, needs, cache, say)
    except ConfigError as error:
        advice = (
            "is its head up (`ray status`), are RAY_AUTH_MODE and RAY_AUTH_TOKEN those of the head, and is this a node "
            "of it? From elsewhere: as a job (docs/ray-job.md)"
        )
        return [Check(CLUSTER, "cluster", str(error), "fail", advice)]


def survey_checks(survey: Survey, needs: Needs, cache: Path, say: Callable[[str], None]) -> list[Check]:
    """Everything about the nodes of a survey; a node that does not answer is a failed check."""
    say(f"asking {len(survey.nodes)} nodes")
    driver = collect(HERE, _cache(needs, cache))
    arguments: dict[str, tuple[Any, ...]] = {node.name: (node.name, []) for node in survey.nodes}
    answers = survey.ask("facts", arguments, _START_SECONDS)
    found = {node: facts for node, facts in answers.items() if isinstance(facts, NodeFacts)}
    checks = [_silent(node, answer) for node, answer in answers.items() if isinstance(answer, Silence)]
    if survey.lost:
        advice = "if they should be there, look at their raylet's log; a run would go on without them"
        checks.append(Check(CLUSTER, "cluster", f"{survey.lost} nodes have left since it was started", "warn", advice))
    ray_gpus = {node.name: node.gpus for node in survey.nodes}
    for node, facts in found.items():
        checks += check_node(facts, needs, requirements(), ray_gpus[node])
    if needs.gpus and found and not any(facts.gpus.devices for facts in found.values()):
        advice = "start Ray on the nodes with GPUs, or set cluster.gpus=0 and ppo.placement.*.gpus=0"
        checks.append(Check(CLUSTER, "GPUs", "none on any node; the run asks for some", "fail", advice))
    checks.append(check_versions(driver, needs, requirements()))
    checks += check_folders(driver)
    checks += check_same(driver, list(found.values()))
    checks.append(check_tokens(driver, list(found.values())))
    addresses = {node.name: node.address for node in survey.nodes if node.name in found}
    say("clocks, ports and shared folders")
    checks += check_clocks(_clocks(survey, list(found)))
    checks += check_reach(_reach(survey, addresses))
    for label, folder in needs.shared:
        checks += _shared(survey, list(found), label, _existing(folder))
    checks += _reduce_across(survey, found, addresses, say)
    return checks


def requirements() -> list[str]:
    """What the package asks of others; nothing where it is not installed."""
    try:
        return [line for line in metadata.requires("cai_dist") or [] if ";" not in line]
    except metadata.PackageNotFoundError:
        return []


def _cache(needs: Needs, cache: Path) -> list[tuple[str, str]]:
    return [] if any(label == "cache" for label, _ in needs.shared) else [("cache", str(cache))]


def _silent(node: str, answer: Silence) -> Check:
    advice = "can it import cai_dist (the same checkout and environment)? is it overloaded? see Ray's logs there"
    return Check(node, "cluster", answer.cause, "fail", advice)


def _reductions(facts: NodeFacts) -> Iterator[tuple[str, str, int]]:
    """(backend, name, processes) of what one machine can try."""
    yield "gloo", "gloo all-reduce", 2
    if len(facts.gpus.devices) > 1:
        yield "nccl", "NCCL all-reduce", len(facts.gpus.devices)


def _reduce_here(backend: str, ranks: int) -> list[str]:
    examiner = Examiner()
    try:
        port = examiner.open_store("127.0.0.1", _REDUCE_SECONDS)
    except (OSError, RuntimeError) as error:
        return [f"no store: {error}"]
    return examiner.all_reduce(backend, range(ranks), ranks, "127.0.0.1", port, _REDUCE_SECONDS)


def _reduce_across(
    survey: Survey, found: Mapping[str, NodeFacts], addresses: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Check]:
    """One process a node by gloo (two where there is one node); by NCCL one for each GPU of the nodes that have any."""
    gloo = {node: 2 if len(found) == 1 else 1 for node in found}
    nccl = {node: len(facts.gpus.devices) for node, facts in found.items() if facts.gpus.devices}
    for backend, name, counts in (("gloo", "gloo all-reduce", gloo), ("nccl", "NCCL all-reduce", nccl)):
        world = sum(counts.values())
        if world < 2:
            continue
        say(f"{name} of {world} processes")
        problems = _reduce_counts(survey, backend, counts, addresses)
        yield check_all_reduce(name, CLUSTER, world, problems)


def _reduce_counts(survey: Survey, backend: str, counts: Mapping[str, int], addresses: Mapping[str, str]) -> list[str]:
    first, world = next(iter(counts)), sum(counts.values())
    host = addresses[first]
    port = survey.ask("open_store", {first: (host, _REDUCE_SECONDS)}, _START_SECONDS)[first]
    if isinstance(port, Silence):
        return [f"no store on {first}: {port.cause}"]
    arguments: dict[str, tuple[Any, ...]] = {}
    before = 0
    for node, count in counts.items():
        arguments[node] = (backend, list(range(before, before + count)), world, host, port, _REDUCE_SECONDS)
        before += count
    answers = survey.ask("all_reduce", arguments, 3 * _REDUCE_SECONDS)
    problems: list[str] = []
    for node, answer in answers.items():
        lines = [answer.cause] * counts[node] if isinstance(answer, Silence) else answer
        problems += [f"{line} (on {node})" if line else "" for line in lines]
    return problems


def _clocks(survey: Survey, nodes: Sequence[str]) -> dict[str, list[ClockReading]]:
    """Five readings of each node, one node at a time: a call that waits for others would seem a slow clock."""
    readings: dict[str, list[ClockReading]] = {}
    for node in nodes:
        for _ in range(5):
            before = time.time()
            answer = survey.ask("clock", {node: ()}, _SHORT_SECONDS)[node]
            if isinstance(answer, Silence):
                break
            readings.setdefault(node, []).append(ClockReading(before, answer, time.time()))
    return readings


def _reach(survey: Survey, addresses: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Each node connects to the next one: n connections, and every node is tried in both directions."""
    nodes = list(addresses)
    if len(nodes) < 2:
        return {}
    ports = survey.ask("listen", dict.fromkeys(nodes, ()), _SHORT_SECONDS)
    pairs = dict(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    arguments = {
        node: (addresses[target], ports[target], _SHORT_SECONDS)
        for node, target in pairs.items()
        if not isinstance(ports[target], Silence)
    }
    answers = survey.ask("reach", arguments, 2 * _SHORT_SECONDS)
    return {
        (node, pairs[node]): answer.cause if isinstance(answer, Silence) else answer for node, answer in answers.items()
    }


def _shared(survey: Survey, nodes: Sequence[str], label: str, folder: str) -> list[Check]:
    """Every node writes a file of random content and reads those of all."""
    contents = {f".cai-dist-doctor-{secrets.token_hex(8)}": secrets.token_hex(32) for _ in nodes}
    names = dict(zip(nodes, contents, strict=True))
    wrote = survey.ask("write", {n: (folder, names[n], contents[names[n]]) for n in nodes}, _SHORT_SECONDS)
    problems = {n: f"cannot write: {_problem(answer)}" for n, answer in wrote.items() if _problem(answer)}
    written = {names[n]: contents[names[n]] for n in nodes if n not in problems}
    readers = {n: (folder, written, _SHORT_SECONDS) for n in nodes if n not in problems}
    slowest = 0.0
    for node, answer in survey.ask("read", readers, 3 * _SHORT_SECONDS).items():
        problems[node] = answer.cause if isinstance(answer, Silence) else answer[0]
        slowest = slowest if isinstance(answer, Silence) else max(slowest, answer[1])
    # Each removes its own: where the folder is not shared, nobody else could.
    survey.ask("remove", {n: (folder, [names[n]]) for n in nodes}, _SHORT_SECONDS)
    return list(check_shared(label, folder, problems, slowest))


def _problem(answer: Any) -> str:
    return answer.cause if isinstance(answer, Silence) else str(answer)


def _existing(folder: str) -> str:
    """The folder, or the nearest one above it that this process sees: the run will make the rest."""
    here = Path(folder).absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return str(here)
