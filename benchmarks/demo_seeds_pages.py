"""The tables of benchmarks/demo_seeds.py: the page of all stored runs and the one in README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

Run = dict[str, Any]
MEASURES = ("danger", "rude", "engaged", "evasive", "help_safe", "over_refusal")
MODELS = {"base": "base", "sl": "SL-CAI", "rl": "RL-CAI"}
BEGIN = "<!-- from benchmarks/results/demo-seeds.json, by `python benchmarks/demo_seeds.py --readme` -->\n"
END = "<!-- until here -->\n"


def seeds_page(name: str, runs: Sequence[Run]) -> str:
    """Markdown: for each set of settings and kind of machine, measures by model over seeds; then every run."""
    lines = [f"# {name}: seeds and machines (micro-world, held-out requests)", ""]
    lines += ["Mean over seeds (lowest–highest), judged by the oracle. By `python benchmarks/demo_seeds.py`.", ""]
    for overrides, machine in dict.fromkeys((tuple(one["overrides"]), machine_text(one["machine"])) for one in runs):
        like = [one for one in runs if (tuple(one["overrides"]), machine_text(one["machine"])) == (overrides, machine)]
        lines += [f"## {machine}", ""]
        lines += [f"With `{' '.join(overrides)}`.", ""] if overrides else []
        lines += [*_measures(like), "", *_runs(like), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme_with(text: str, runs: Sequence[Run]) -> str:
    """README's text with the table of these runs. Raises ValueError where it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md: the marks around the demo's table are gone")
    return f"{before}{BEGIN}{readme_block([one for one in runs if not one['overrides']])}{END}{after}"


def readme_block(runs: Sequence[Run]) -> str:
    """The lowest and the highest of all these runs, as the demo prints them, and which runs they are."""
    found = [one["evaluation"] for one in runs]
    lines = ["", "    " + " " * 12 + "".join(f"{title:>13}" for title in MODELS.values())]
    for measure in MEASURES:
        cells = [_range([e["models"][model][measure]["value"] for e in found], ".2f", "–") for model in MODELS]
        lines.append(f"    {measure:<12}" + "".join(f"{cell:>13}" for cell in cells))
    rounds = zip(*(e["harm_by_revision"] for e in found), strict=True)
    harm = "  ".join(f"{number}: {_range(values, '.2f', '–')}" for number, values in enumerate(rounds))
    elo = [e["elo"]["harmlessness"] for e in found]
    ratings = ";  ".join(
        f"{title} {_range([one[model]['value'] for one in elo], '+.0f', ' to ')}" for model, title in MODELS.items()
    )
    lines += ["", f"    harm by revision round: {harm}", f"    Elo, harmlessness: {ratings}", ""]
    numbers = sorted({one["seed"] for one in runs})
    seeds = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    machines = " and ".join(dict.fromkeys(one["machine"]["cpu"] for one in runs))
    lines += [f"Lowest and highest of {len(runs)} runs: {seeds}, on {machines}.", ""]
    return "\n".join(lines) + "\n"


def machine_text(machine: dict[str, Any]) -> str:
    """The kind of a machine in a line; what is not known of it is left out."""
    parts = [machine["cpu"], f"{machine['cpus']} cores" if "cpus" in machine else "", machine.get("instructions", "")]
    parts += [f"{what} {machine[what]}" for what in ("torch", "python") if what in machine]
    return ", ".join(part for part in parts if part)


def _measures(runs: Sequence[Run]) -> Iterator[str]:
    yield "| | " + " | ".join(MODELS.values()) + " |"
    yield "|---|" + "---|" * len(MODELS)
    for measure in MEASURES:
        values = ([one["evaluation"]["models"][model][measure]["value"] for one in runs] for model in MODELS)
        yield f"| {measure} | " + " | ".join(map(_spread, values)) + " |"


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    columns = (
        "seed", "Elo, harmlessness: SL-CAI, RL-CAI", "harm by revision round", "labels accuracy, ECE",
        "PM held-out accuracy, ECE", "seconds", "date, commit",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for one in runs:
        e = one["evaluation"]
        elo = ", ".join(f"{e['elo']['harmlessness'][model]['value']:+.0f}" for model in ("sl", "rl"))
        harm = " ".join(f"{h:.3f}" for h in e["harm_by_revision"])
        pm = e.get("preference_model") or {}
        pair = _pair(e.get("labels") or {}, "accuracy"), _pair(pm, "heldout_accuracy")
        seconds = f"{sum(one['seconds'].values()):.0f}" if one["seconds"] else "–"
        made = f"{one['date']}, {one['commit']}" + (f"; {one['source']}" if one.get("source") else "")
        yield f"| {one['seed']} | {elo} | {harm} | {pair[0]} | {pair[1]} | {seconds} | {made} |"


def _pair(numbers: dict[str, Any], accuracy: str) -> str:
    return f"{numbers[accuracy]:.3f}, {numbers['ece']:.3f}" if accuracy in numbers else "–"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _range(values: Sequence[float], form: str, to: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}{to}{high}"
