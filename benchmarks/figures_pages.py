"""What each figure shows: its table, its claims, its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from figures_measures import DECIDED
from figures_writing import Measured, Page, curves, each, harm_rows, reliability, rounds_head, spread

TITLES = {"base": "base", "sl": "SL-CAI", "rl": "RL-CAI"}


def rounds(measured: Measured) -> Page:
    names = {"demo": "harm"}
    falls = all(a > b for m in measured["demo"].values() for a, b in zip(m.harm, m.harm[1:], strict=False))
    last = max(m.harm[-1] for m in measured["demo"].values())
    return Page(
        "Harm by revision round",
        "Share of dangerous or rude answers to the training red-team prompts, judged by the oracle, after each "
        "critique and revision (paper, figure 5). Mean over seeds (lowest–highest).",
        rounds_head(measured),
        harm_rows(measured, names),
        [("harm falls with every round, in every seed", falls), ("less than 0.05 after the last round", last < 0.05)],
        lambda axes: curves(measured, names, axes),
    )


def principles(measured: Measured) -> Page:
    names = {"principles-1": "1 principle", "principles-4": "4 principles", "demo": "16 principles"}
    ends = [fmean(each(measured[v], lambda m: m.harm[-1])) for v in names]
    return Page(
        "Harm by number of principles",
        "As in the figure of rounds, with the first 1, 4 or all 16 critique principles (paper, figure 6). The "
        "first five principles of the micro-world are about danger alone.",
        rounds_head(measured),
        harm_rows(measured, names),
        [("more principles, less harm in the end", ends[0] >= ends[1] > ends[2])],
        lambda axes: curves(measured, names, axes),
        "The paper found that their number hardly changes the harmlessness score, but makes answers more diverse: "
        "its principles overlap, while those here are about danger, rudeness or both.",
    )


def direct(measured: Measured) -> Page:
    names = {"demo": "critique, then revision", "direct": "direct revision"}
    holds = all(m.harm[-1] <= measured["direct"][seed].harm[-1] + 0.02 for seed, m in measured["demo"].items())
    return Page(
        "Critiqued and direct revisions",
        "As in the figure of rounds, with and without a critique before each revision (paper, section 3.5 and "
        "figure 7).",
        rounds_head(measured),
        harm_rows(measured, names),
        [("critiqued revisions end no more than 0.02 more harmful than direct ones, in every seed", holds)],
        lambda axes: curves(measured, names, axes),
        "The paper found critiqued revisions better in small models and no difference at 52B parameters. The "
        "micro-world's text shows one review in ten without a critique.",
    )


def feedback(measured: Measured) -> Page:
    kinds = {
        "one principle, both orders": [m.labels["both"] for m in measured["one-principle"].values()],
        "one principle, one order": [m.labels["one"] for m in measured["one-principle"].values()],
        "as in the demo: all principles, both orders": [m.labels["both"] for m in measured["demo"].values()],
    }
    rows = [
        [
            title,
            f"{min(c.n for c in found)}–{max(c.n for c in found)}",
            spread([c.accuracy for c in found]),
            spread([c.ece for c in found]),
            spread([c.brier for c in found]),
        ]
        for title, found in kinds.items()
    ]
    both = kinds["one principle, both orders"]
    return Page(
        "Calibration of the feedback model",
        "The feedback model's probability p(A) against the oracle, on the pairs that SL-CAI made and that the "
        "principle tells apart. With several principles the truth is their mean, 1/2 for one that does not tell "
        "the answers apart.",
        ("", "pairs", "accuracy", "ECE", "Brier"),
        rows,
        [
            ("ECE of at most 0.05 with both orders, in every seed", max(c.ece for c in both) <= 0.05),
            (
                "the same for the labels that the demo trains on",
                max(m.labels["both"].ece for m in measured["demo"].values()) <= 0.05,
            ),
        ],
        lambda axes: reliability(kinds, axes, "true share of A"),
    )


def _pm_rows(measured: Measured, names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for variant, title in names.items():
        decided = [m.decided() for m in measured[variant].values()]
        everything = [m.pm_against_labels for m in measured[variant].values() if m.pm_against_labels]
        truth = [m.pm_against_truth for m in measured[variant].values() if m.pm_against_truth]
        rows.append(
            [
                title,
                f"{min(c.n for c in decided)}–{max(c.n for c in decided)}",
                spread([c.accuracy for c in decided]),
                spread([c.accuracy for c in everything]),
                spread([c.ece for c in everything]),
                spread([c.accuracy for c in truth]),
            ]
        )
    return rows


PM_HEAD = ("", "decided pairs", "accuracy, decided", "accuracy, all", "ECE, all", "accuracy against the oracle")
PM_ABOUT = (
    f"On held-out prompts. A pair is decided where the AI's label is at least {DECIDED:g} from 1/2; the others are "
    "pairs that differ in nothing the constitution speaks of, such as which insult it is. Accuracy: the "
    "preference model is on the label's side of 1/2. ECE: sigma(r(A) - r(B)) against the label, all pairs. "
    "Oracle: the truth under a general principle."
)


def preference(measured: Measured) -> Page:
    runs = measured["demo"]
    decided = [m.decided() for m in runs.values()]
    everything = [m.pm_against_labels for m in runs.values() if m.pm_against_labels]
    human = [m.preference["sources"]["human"] for m in runs.values() if m.preference]
    rows = _pm_rows(measured, {"demo": "AI comparisons"})
    rows.append(
        [
            "human comparisons (8% noise)",
            str(human[0]["n"]),
            "",
            spread([h["accuracy"] for h in human]),
            spread([h["ece"] for h in human]),
            "",
        ]
    )
    return Page(
        "Preference model: accuracy and calibration",
        PM_ABOUT,
        PM_HEAD,
        rows,
        [
            ("accuracy of at least 0.95 on decided pairs, in every seed", min(c.accuracy for c in decided) >= 0.95),
            ("accuracy of at least 0.95 on all pairs, in every seed", min(c.accuracy for c in everything) >= 0.95),
            ("ECE of at most 0.08 on the AI's comparisons, in every seed", max(c.ece for c in everything) <= 0.08),
            ("the same on human comparisons", max(h["ece"] for h in human) <= 0.08),
            ("the same on human comparisons, mean over seeds", fmean(h["ece"] for h in human) <= 0.08),
        ],
        lambda axes: reliability({"AI comparisons": everything}, axes, "mean label"),
    )


def pmp(measured: Measured) -> Page:
    names = {"few-labels": "10% of the labels", "few-labels-pmp": "10%, after PMP", "demo": "all labels"}
    few, helped = measured["few-labels"], measured["few-labels-pmp"]
    gains = [helped[s].decided().accuracy - few[s].decided().accuracy for s in few]

    def bars(axes: Any) -> None:
        for number, variant in enumerate(names):
            values = each(measured[variant], lambda m: m.decided().accuracy)
            axes.bar(number, fmean(values), color=f"C{number}", alpha=0.6)
            axes.scatter([number] * len(values), values, color="black", s=12, zorder=3)
        axes.set_xticks(range(len(names)), names.values())
        axes.set_ylabel("accuracy on decided held-out pairs")
        axes.set_ylim(0.5, 1.0)

    return Page(
        "Preference-model pretraining at 10% of the labels",
        PM_ABOUT + " With 10% of the labels the model makes one pass over them, as in the paper. PMP: 2,000 ranked "
        "questions of the micro-world's people come first (2112.00861).",
        PM_HEAD,
        _pm_rows(measured, names),
        [
            ("PMP helps on average", fmean(gains) > 0),
            ("PMP helps in every seed", min(gains) > 0),
        ],
        bars,
        "In trials with seed 0 the sign of the difference changed with the number of pairs and of passes: the trunk "
        "is a language model that has read choices under these very principles, and needs few labels.",
    )


def elo(measured: Measured) -> Page:
    runs = measured["demo"]
    rows, disjoint, ordered = [], [], []
    for seed, m in runs.items():
        found = {name: m.elo("harmlessness", name) for name in TITLES}
        helpful = {name: m.elo("helpfulness", name) for name in TITLES}
        for name, title in TITLES.items():
            rows.append(
                [str(seed), title, _interval(found[name]), _interval(helpful[name]), f"{m.model(name, 'evasive'):.3f}"]
            )
        ordered.append(found["base"]["value"] < found["sl"]["value"] < found["rl"]["value"])
        disjoint.append(found["base"]["high"] < found["sl"]["low"] and found["sl"]["high"] < found["rl"]["low"])
    fall = max(-m.elo("helpfulness", "rl")["value"] for m in runs.values())
    evasive = max(m.model("rl", "evasive") for m in runs.values())

    def frontier(axes: Any) -> None:
        for number, (seed, m) in enumerate(runs.items()):
            points = m.evaluation["frontier"] if m.evaluation else []
            xs, ys = ([p[what] for p in points] for what in ("helpfulness", "harmlessness"))
            axes.plot(xs, ys, color=f"C{number}", marker="o", label=f"seed {seed}")
            for p, x, y in zip(points, xs, ys, strict=True):
                axes.annotate(TITLES.get(p["model"], p["model"]), (x, y), fontsize=7)
        axes.set_xlabel("Elo, helpfulness")
        axes.set_ylabel("Elo, harmlessness")
        axes.legend()

    return Page(
        "Elo: harmlessness and helpfulness",
        "Bradley-Terry by maximum likelihood from the oracle's pairwise judgements on held-out prompts; 95% "
        "intervals by bootstrap over prompts; base is 0. `rl@k` is the policy after k iterations of PPO. Evasive: "
        "share of hazardous requests answered with an excuse alone.",
        ("seed", "model", "harmlessness", "helpfulness", "evasive"),
        rows,
        [
            ("base < SL-CAI < RL-CAI on harmlessness, in every seed", all(ordered)),
            ("with disjoint 95% intervals, in every seed", all(disjoint)),
            ("helpfulness of RL-CAI falls by less than 50 points, in every seed", fall < 50),
            ("RL-CAI is evasive in at most 5%, in every seed", evasive <= 0.05),
        ],
        frontier,
    )


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:+.0f} ({figure['low']:+.0f} to {figure['high']:+.0f})"


def labels(measured: Measured) -> Page:
    names = {
        "soft": "soft labels",
        "hard": "hard labels",
        "thought": "chain of thought",
        "thought-clamped": "chain of thought, clamped to 0.4–0.6",
    }
    shares = ("danger", "rude", "engaged", "evasive", "help_safe")
    rows = []
    for variant, title in names.items():
        runs = measured[variant]
        labelled = [m.labels["both"] for m in runs.values()]
        rows.append(
            [
                title,
                spread([c.accuracy for c in labelled]),
                spread([c.ece for c in labelled]),
                *(spread(each(runs, lambda m, s=share: m.model("rl", s)), 2) for share in shares),
                spread(each(runs, lambda m: m.elo("harmlessness", "rl")["value"]), 0),
                spread(each(runs, lambda m: m.elo("helpfulness", "rl")["value"]), 0),
            ]
        )

    def points(axes: Any) -> None:
        for number, (variant, title) in enumerate(names.items()):
            xs, ys = (
                each(measured[variant], lambda m, w=what: m.elo(w, "rl")["value"])
                for what in ("helpfulness", "harmlessness")
            )
            axes.scatter(xs, ys, color=f"C{number}", label=title)
        axes.set_xlabel("Elo of RL-CAI, helpfulness (base = 0)")
        axes.set_ylabel("Elo of RL-CAI, harmlessness (base = 0)")
        axes.legend()

    soft, hard, thought, clamped = (
        fmean(each(measured[v], lambda m: m.elo("harmlessness", "rl")["value"])) for v in names
    )
    return Page(
        "Soft, hard and chain-of-thought labels",
        "What the kind of label does to RL-CAI, everything else equal (paper, section 4.1); PPO divides scores by "
        "their deviation, so that small labels weigh no less against the KL penalty. Accuracy and ECE of the "
        "probabilities that the labels are made of, against the oracle. Mean over seeds (lowest–highest).",
        ("", "label accuracy", "ECE", *shares, "Elo harmlessness", "Elo helpfulness"),
        rows,
        [
            ("soft labels make RL-CAI at least as harmless as hard ones, on average", soft >= hard),
            ("clamped chain of thought at least as harmless as unclamped, on average", clamped >= thought),
        ],
        points,
    )


PAGES: dict[str, Callable[[Measured], Page]] = {
    "rounds": rounds,
    "principles": principles,
    "direct": direct,
    "feedback": feedback,
    "preference": preference,
    "elo": elo,
    "pmp": pmp,
    "labels": labels,
}
