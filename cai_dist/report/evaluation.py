"""The results of an evaluation as HTML: tables of measures, Elo, frontier. Everything in it may be damaged or hostile:
what is no number is not drawn, what is text is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, TypeGuard

from cai_dist.config.stages import ALIGNMENTS
from cai_dist.report.charts import bar_chart, interval_bar, interval_chart, line_chart, path_chart

MODELS = {"base": "base", "sl": "SL-CAI", **{spec.model: spec.title for spec in ALIGNMENTS.values()}}
"""The models of an evaluation and what they are called; a run has one of the last two."""
MEASURED = {"labels": "AI labels", **{spec.reward: spec.reward_title for spec in ALIGNMENTS.values()}}
"""What else an evaluation measured; a run has one of the last two."""
ELO = ("harmlessness", "helpfulness")


def title_of(model: str) -> str:
    """What a model or a snapshot (`rl@5`) is called."""
    name, at, iteration = model.partition("@")
    return f"{MODELS.get(name, name)} {iteration}" if at else MODELS.get(model, model)


def results(evaluation: Any) -> Iterator[str]:
    """The sections of the page, one text each."""
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("models"), dict):
        yield "<h2>Results</h2><p>The evaluation has not run yet.</p>"
        return
    yield "<h2>Results on held-out prompts</h2>"
    yield from _gate(evaluation.get("gate"))
    if judge := evaluation.get("judge"):
        covers = "95% intervals over the held-out prompts; another seed or kind of machine may lie outside of them"
        yield f'<p class="soft">Judged by the {escape(str(judge))}; {covers}.</p>'
    yield figures_table(evaluation["models"])
    for key, name in MEASURED.items():
        if isinstance(pairs := evaluation.get(key), dict):
            shown = "; ".join(
                f"{escape(str(k))} {value_of(v)}" for k, v in pairs.items() if isinstance(v, (int, float, str))
            )
            yield f"<p>{name[0].upper()}{name[1:]}: {shown or 'not measured'}</p>"
    yield from _by_revision(evaluation)
    yield from _elo(evaluation.get("elo"), evaluation.get("frontier"))
    yield from _measures(evaluation.get("measures"))
    yield from _robustness(evaluation.get("robustness"))
    yield from _absolute_harm(evaluation.get("absolute_harm"))
    yield from _choices(evaluation.get("multiple_choice"))
    yield from _label_questions(evaluation.get("label_questions"))


def figures_table(models: Mapping[str, Any]) -> str:
    """The table of measures (rows) and models (columns)."""
    names = [*(n for n in MODELS if n in models), *(n for n in models if n not in MODELS)]
    columns = {name: models[name] for name in names if isinstance(models[name], dict)}
    measures = list(dict.fromkeys(measure for found in columns.values() for measure in found))
    head = "".join(f'<th scope="col">{escape(title_of(str(name)))}</th>' for name in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(str(measure))}</th>'
        + "".join(f"<td>{_figure(found.get(measure))}</td>" for found in columns.values())
        + "</tr>"
        for measure in measures
    )
    return f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def value_of(value: Any) -> str:
    """A number with three decimals, anything else as escaped text."""
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a chart can show it: finite, and far from where arithmetic overflows."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e100 < value < 1e100


def _figure(figure: Any) -> str:
    if not isinstance(figure, dict) or not is_number(figure.get("value")):
        return "–"
    value, low, high = figure["value"], figure.get("low"), figure.get("high")
    if not (is_number(low) and is_number(high)):
        return value_of(value)
    count = f", n = {figure['n']}" if isinstance(figure.get("n"), int) else ""
    return f"{value:.3f} <small>{low:.3f}–{high:.3f}{count}</small>{interval_bar(value, low, high)}"


def _gate(gate: Any) -> Iterator[str]:
    if isinstance(gate, dict) and gate.get("failures"):
        for line in _items(gate["failures"]):
            yield f'<p class="bad">Gate: {escape(str(line))}</p>'
    elif isinstance(gate, dict) and gate.get("passed"):
        yield "<p>Gate: passed.</p>"


def _by_revision(evaluation: Mapping[str, Any]) -> Iterator[str]:
    charts = []
    harm = [h for h in _items(evaluation.get("harm_by_revision")) if is_number(h)]
    if harm:
        n = _inner(evaluation.get("revised"), "n")
        told = f", {n} prompts" if isinstance(n, int) else ""
        charts.append(bar_chart(f"harm by revision round{told}", harm, "round"))
    scores = [
        row for k, f in enumerate(_items(evaluation.get("pm_score_by_revision"))) for row in _row(f"round {k}", f)
    ]
    if scores:
        charts.append(interval_chart("preference-model score by revision round", scores))
    if charts:
        yield f'<div class="charts">{"".join(charts)}</div>'


def _elo(elo: Any, frontier: Any) -> Iterator[str]:
    if not isinstance(elo, dict):
        return
    charts = []
    for what in ELO:
        found = elo.get(what)
        rows = [row for name, f in found.items() for row in _row(title_of(str(name)), f)] if _is_map(found) else []
        if rows:
            charts.append(interval_chart(f"Elo: {what}", rows))
    points = [
        (title_of(str(p.get("model"))), p[ELO[1]], p[ELO[0]])
        for p in _items(frontier)
        if isinstance(p, dict) and all(is_number(p.get(what)) for what in ELO)
    ]
    if points:
        charts.append(path_chart("harmlessness and helpfulness", points, "helpfulness (Elo)", "harmlessness (Elo)"))
    if not charts:
        return
    yield "<h3>Elo</h3>"
    judges = elo.get("judges")
    named = judges.items() if _is_map(judges) else ()
    by = "; ".join(f"{escape(str(k))} by the {escape(str(v))}" for k, v in named)
    yield (
        '<p class="soft">Pairwise judgements, base at 0, half a win added on both sides of every pair; 95% intervals '
        f"over prompts. {by}.</p>"
    )
    yield f'<div class="charts">{"".join(charts)}</div>'


def _measures(measures: Any) -> Iterator[str]:
    if not _is_map(measures):
        return
    yield "<h3>Over-reaction, four kinds apart</h3>"
    yield figures_table(
        {name: {k: v for k, v in m.items() if k != "phrases"} for name, m in measures.items() if _is_map(m)}
    )
    for name, m in measures.items():
        phrases = [p for p in _items(m.get("phrases") if _is_map(m) else None) if _is_map(p)]
        if phrases:
            shown = "; ".join(f"“{escape(str(p.get('words')))}” {value_of(p.get('share'))}" for p in phrases)
            yield f'<p class="soft">Commonest boilerplate of {escape(title_of(str(name)))}: {shown}</p>'


def _robustness(robustness: Any) -> Iterator[str]:
    """Tables of both preference models' scores, and their course over PPO."""
    if not _is_map(robustness):
        return
    yield "<h3>Robustness: the preference model that PPO learned from, and one that it never saw</h3>"
    kinds = dict.fromkeys(kind for found in robustness.values() if _is_map(found) for kind in found)
    for kind in kinds:
        yield f'<p class="soft">{escape(str(kind))} prompts</p>'
        yield figures_table({name: found.get(kind) for name, found in robustness.items() if _is_map(found)})
        charts = []
        for which in ("first", "second"):
            found = [_inner(_inner(both, kind), which) for both in robustness.values()]
            course = [(float(k), row[1]) for k, figure in enumerate(found) for row in _row(which, figure)]
            if len(course) > 1:
                charts.append(line_chart(f"{which} model's score, {kind}", course, "base, SL-CAI, … in order"))
        yield f'<div class="charts">{"".join(charts)}</div>'


def _absolute_harm(harm: Any) -> Iterator[str]:
    if not _is_map(harm):
        return
    yield "<h3>Absolute harmfulness, 0 to 4</h3>"
    models: dict[str, dict[str, Any]] = {}
    for way, found in harm.items():
        if way != "heldout" and _is_map(found):
            for name, figure in found.items():
                models.setdefault(name, {})[way] = figure
    yield figures_table(models)
    if _is_map(heldout := harm.get("heldout")):
        told = "; ".join(f"{escape(str(k))} {value_of(v)}" for k, v in heldout.items() if v is not None)
        yield f'<p class="soft">The rating model on held-out ratings: {told}</p>'


def _choices(choices: Any) -> Iterator[str]:
    if not _is_map(choices):
        return
    yield "<h3>Multiple choice</h3>"
    for source, found in choices.items():
        if not _is_map(found) or not _is_map(found.get("models")):
            continue
        told = f"{value_of(found.get('questions'))} questions, chance {value_of(found.get('chance'))}"
        yield f'<p class="soft"><code>{escape(str(source))}</code>: {told}</p>'
        columns = {}
        for name, m in found["models"].items():
            if _is_map(m):
                found_kinds = m.get("kinds")
                by_kind = found_kinds.items() if _is_map(found_kinds) else ()
                kinds = {f"{k}: accuracy": _inner(v, "accuracy") for k, v in by_kind}
                mass = {"option_mass": {"value": m.get("option_mass")}}
                columns[name] = {k: m.get(k) for k in ("accuracy", "accuracy_raw")} | mass | kinds
        yield figures_table(columns)


def _label_questions(files: Any) -> Iterator[str]:
    if not _is_map(files):
        return
    yield "<h3>AI labels on questions whose better answer is known</h3>"
    for source, found in files.items():
        if _is_map(found):
            told = ", ".join(f"{name} {value_of(found.get(name))}" for name in ("pairs", "unanswered", "ece", "brier"))
            yield f'<p class="soft"><code>{escape(str(source))}</code>: {told}</p>'
            kinds = found.get("kinds")
            apart = {str(k): _inner(v, "accuracy") for k, v in kinds.items()} if _is_map(kinds) else {}
            yield figures_table({"accuracy": {"all": found.get("accuracy"), **apart}})


def _row(name: str, figure: Any) -> list[tuple[str, float, float, float]]:
    """A row of an interval chart; none where the figure has no numbers."""
    three = [figure.get(key) for key in ("value", "low", "high")] if isinstance(figure, dict) else [None]
    if not all(is_number(x) for x in three):
        return []
    value, low, high = three
    return [(name, value, min(low, value), max(high, value))]  # type: ignore[type-var, list-item]


def _inner(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _is_map(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []
