"""What the nodes of a cluster must have in common, and how they reach each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai_dist.doctor.checks import Check
from cai_dist.doctor.facts import NodeFacts

CLUSTER = "all"
_SKEW_SECONDS = 1.0


@dataclass(frozen=True)
class ClockReading:
    """A node's clock read between two readings of ours, in seconds since 1970."""

    before: float
    there: float
    after: float

    @property
    def offset(self) -> float:
        """Clock of the other node less ours, in seconds, half of the round trip taken off."""
        return self.there - (self.before + self.after) / 2

    @property
    def doubt(self) -> float:
        """Half of the round trip: the offset is known no better."""
        return (self.after - self.before) / 2


def check_same(driver: NodeFacts, nodes: Sequence[NodeFacts]) -> Iterator[Check]:
    """Pickles and collectives go between processes: versions and this package's code must be those of the driver."""
    differ = False
    for facts in nodes:
        others = [
            f"{name} {facts.versions.get(name, 'missing')} (here {version})"
            for name, version in driver.versions.items()
            if facts.versions.get(name) != version
        ]
        if facts.code != driver.code:
            others.append(f"code of cai_dist {facts.code} (here {driver.code})")
        if others:
            differ = True
            advice = "give all nodes the same checkout and virtual environment (a shared disk, or one image)"
            yield Check(facts.node, "same software", ", ".join(others), "fail", advice)
    if not differ:
        yield Check(CLUSTER, "same software", f"{len(nodes)} nodes and this process: versions and code are the same")


def check_tokens(driver: NodeFacts, nodes: Sequence[NodeFacts]) -> Check:
    """Ray without a token runs the code of whoever reaches its ports; half with and half without does not start."""
    ways = {_authentication(facts) for facts in (driver, *nodes)}
    found = " / ".join(sorted(ways))
    if len(ways) > 1:
        advice = "export the same RAY_AUTH_MODE and RAY_AUTH_TOKEN for the head, every node and every driver"
        return Check(CLUSTER, "authentication", found, "warn", advice)
    if not found.startswith("token") and len(nodes) > 1:
        advice = "whoever reaches these ports can run code: RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN for all"
        return Check(CLUSTER, "authentication", found, "warn", advice)
    return Check(CLUSTER, "authentication", found)


def _authentication(facts: NodeFacts) -> str:
    mode = facts.environment.get("RAY_AUTH_MODE", "")
    if facts.token and mode != "disabled":
        return f"token {facts.token}"
    return mode or "not set"


def check_clocks(readings: Mapping[str, Sequence[ClockReading]]) -> Iterator[Check]:
    """Compare clocks; of several readings the one with the shortest round trip counts. Warn above a second beyond
    doubt."""
    best = {node: min(found, key=lambda reading: reading.doubt) for node, found in readings.items()}
    apart = {node: reading for node, reading in best.items() if abs(reading.offset) - reading.doubt > _SKEW_SECONDS}
    for node, reading in apart.items():
        found = f"{reading.offset:+.1f} s from here (round trip {2 * reading.doubt:.3f} s)"
        yield Check(node, "clock", found, "warn", "run chrony or ntpd: times in manifests and logs cannot be compared")
    if best and not apart:
        most = max(abs(reading.offset) for reading in best.values())
        yield Check(CLUSTER, "clock", f"at most {most:.3f} s apart")


def check_shared(label: str, folder: str, problems: Mapping[str, str], seconds: float) -> Iterator[Check]:
    """`problems`: node -> "" or why it did not see what the others had written; `seconds`: the slowest that did."""
    broken = {node: problem for node, problem in problems.items() if problem}
    for node, problem in broken.items():
        advice = f"all nodes must see one {folder}: mount the shared disk there, or choose a folder that is shared"
        yield Check(node, f"shared {label}", f"{folder}: {problem}", "fail", advice)
    if problems and not broken:
        found = f"{folder}: each node read what the others wrote, after at most {seconds:.1f} s"
        yield Check(CLUSTER, f"shared {label}", found)


def check_reach(problems: Mapping[tuple[str, str], str]) -> Iterator[Check]:
    """`problems`: (from, to) -> "" or what became of a connection to a free port."""
    broken = {pair: problem for pair, problem in problems.items() if problem}
    for (source, target), problem in broken.items():
        advice = "open all ports above 1023 between the nodes: Ray and process groups pick free ones"
        yield Check(source, "ports", f"to {target}: {problem}", "fail", advice)
    if problems and not broken:
        yield Check(CLUSTER, "ports", f"{len(problems)} connections between nodes")


def check_all_reduce(name: str, where: str, ranks: int, problems: Sequence[str]) -> Check:
    """`problems`: one text for each rank, "" where the sum was right; `where`: a node, or `all`."""
    broken = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    if not broken:
        return Check(where, name, f"{ranks} processes: the sum is right")
    variable = "NCCL_SOCKET_IFNAME" if name.startswith("NCCL") else "GLOO_SOCKET_IFNAME"
    advice = (
        f"if the interface is wrong: {variable}=NAME of the one that reaches the other nodes; if ports are closed: "
        "open those above 1023"
    )
    if name.startswith("NCCL"):
        advice += "; NCCL_DEBUG=INFO says more"
    return Check(where, name, "; ".join(broken)[:400], "fail", advice)
