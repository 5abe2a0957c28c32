"""The report: one file that needs nothing else, in which hostile text stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.config.stages import ALIGNMENTS
from cai_dist.errors import DataError
from cai_dist.report import write_report
from cai_dist.report.charts import bar_chart, interval_bar, interval_chart, line_chart, nice_ticks, path_chart, thin
from cai_dist.report.curves import curves
from cai_dist.report.evaluation import results
from cai_dist.tracking.manifest import Manifest

HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028 [bold]"
PPO, DPO = ALIGNMENTS["ppo"].stages, ALIGNMENTS["dpo"].stages
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += data


def figure(value: float | None) -> dict:
    return {"value": value, "low": None, "high": None, "n": 0} if value is None else {
        "value": value, "low": value * 0.9, "high": value * 1.1, "n": 40}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "evaluate").mkdir(parents=True)
    manifest = Manifest(folder)
    manifest.set_constitution("abc123")
    manifest.begin("sft", "f", {})
    (folder / "sft" / "model").mkdir(parents=True)
    manifest.done("sft", ["sft/model"], 12.34)
    manifest.begin("ppo", "f", {})
    manifest.failed("ppo", HOSTILE)
    models = {"base": 0.9, "sl": 0.2, "rl": 0.0}
    evaluation = {
        "judge": HOSTILE,
        "models": {name: {"danger": figure(v), HOSTILE: figure(None)} for name, v in models.items()},
        "harm_by_revision": [0.9, 0.5, 0.25],
        "labels": {"accuracy": 0.91, "ece": None},
        "preference_model": {"heldout_accuracy": 0.8, "ece": 0.05, "n": 12},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    said = {"prompt": HOSTILE, "base": HOSTILE, "sl": "safe", "rl": "safer", "kind": HOSTILE, "id": 1}
    (folder / "evaluate" / "transcripts.jsonl").write_text(json.dumps(said, ensure_ascii=False) + "\n")
    lines = [{"stage": "sft", "step": s, "time": 1.0, "loss": 1 / (s + 1), "lr": 0.1} for s in range(3)]
    lines += [{"stage": HOSTILE, "step": s, "time": 1.0, HOSTILE: s, "gone": None} for s in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_hostile_text_stays_text(run_dir):
    path = write_report(run_dir, PPO)
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "link", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert page.words.count(HOSTILE) >= 6  # error, judge, measure, stage, chart, prompt, answer
    assert "'none'" in dict(page.attributes)["content"] or "default-src 'none'" in path.read_text()


def test_what_a_reader_looks_for_is_there(run_dir):
    text = write_report(run_dir, PPO).read_text(encoding="utf-8")
    words = Page(text).words
    for part in ("demo", "abc123", "base", "SL-CAI", "RL-CAI", "0.900", "0.810–0.990, n = 40", "12.3 s", "sft/model"):
        assert part in words, part
    assert "95% intervals over the held-out prompts; another seed or kind of machine may lie outside" in words
    assert "accuracy 0.910" in words and "heldout_accuracy 0.800" in words and "torch" in words
    assert "harm by revision round: 0.9, 0.5, 0.25" in text and "loss: from 1 to 0.333" in text
    assert "lr: from" not in text  # a constant is no curve
    for outside in ("http:", "https:", "url(", "@import"):
        assert outside not in text


PPO_NAMES = (
    "entropy", "idle_policy", "kl_coefficient", "kl_per_response", "kl_per_token", "mismatch_kl", "mismatch_max",
    "mismatch_mean", "policy_approx_kl", "policy_clip_fraction", "policy_grad_norm", "policy_loss", "policy_lr",
    "policy_memory_mb",
    "response_length", "reward", "rollout_seconds", "score", "score_shaped", "sync_bytes", "truncated", "unheard_of",
    "value_clip_fraction", "value_loss", "value_mean",
)  # fmt: skip


def captions(text: str) -> list[str]:
    return re.findall("<(?:h3|summary|figcaption)>([^<]+)</", text)


def test_curves_come_by_meaning() -> None:
    lines = [{"stage": "ppo", "step": s, "time": 0.0, **dict.fromkeys(PPO_NAMES, s / 2)} for s in range(3)]
    assert captions("".join(curves(lines))) == [
        "score and reward", "score", "reward", "score_shaped",
        "KL and distance from the reference", "kl_per_response", "kl_coefficient", "kl_per_token", "policy_approx_kl",
        "losses", "policy_loss", "value_loss", "value_mean",
        "answers and their length", "response_length", "truncated",
        "clipping", "policy_clip_fraction", "value_clip_fraction",
        "sampler against trainer", "mismatch_kl", "mismatch_max", "mismatch_mean",
        "entropy", "entropy", "steps and gradients", "policy_grad_norm", "policy_lr", "other", "unheard_of",
        "time (2)", "idle_policy", "rollout_seconds", "memory (2)", "policy_memory_mb", "sync_bytes",
    ]  # fmt: skip


def test_no_curve_is_cut_off_and_what_has_none_is_named() -> None:
    names = [f"number_{n}" for n in range(100)]
    lines = [{"stage": "ppo", "step": s, "time": 0.0, "fixed": 0.25, **dict.fromkeys(names, s)} for s in range(2)]
    text = "".join(curves(lines))
    assert set(captions(text)) == set(names)
    assert "they did not change: fixed 0.25</p>" in text and "means of runs" not in text
    lines = [{"stage": "sft", "step": s, "time": 0.0, "loss": s} for s in range(600)]
    assert "Of 600 steps, curves show means of runs of 2." in "".join(curves(lines))


def test_transcripts_are_not_cut_off_in_silence(run_dir):
    said = "".join(json.dumps({"prompt": f"p{n}", "base": "b"}) + "\n" for n in range(101))
    for text, told in ((said, True), (said[: said.rindex('{"prompt')], False)):
        (run_dir / "evaluate" / "transcripts.jsonl").write_text(text)
        assert ("The first 100 of 101; all stand in" in Page(write_report(run_dir, PPO).read_text()).words) == told


def test_a_run_of_dpo_has_its_own_names(run_dir):
    evaluation = {
        "models": {name: {"danger": figure(v)} for name, v in {"base": 0.9, "sl": 0.2, "dpo": 0.1}.items()},
        "implicit_reward": {"heldout_accuracy": 0.8},
    }
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    said = {"prompt": "p", "base": "b", "sl": "s", "dpo": "spoken by the third"}
    (run_dir / "evaluate" / "transcripts.jsonl").write_text(json.dumps(said) + "\n")
    words = Page(write_report(run_dir, DPO).read_text(encoding="utf-8")).words
    assert words.count("DPO-CAI") >= 3 and "RL-CAI" not in words  # table, transcript, implicit reward
    assert "Implicit reward of DPO-CAI: heldout_accuracy 0.800" in words and "spoken by the third" in words


def test_a_folder_that_has_seen_both_alignments_shows_one(run_dir):
    manifest = Manifest(run_dir)
    for name in ("prepare", "preference", "dpo", "evaluate"):
        manifest.begin(name, "f", {})
        (run_dir / name).mkdir(exist_ok=True)
        (run_dir / name / "written").touch()
        manifest.done(name, [f"{name}/written"], 1.0)
    series = ("pretrain", "preference", "preference_heldout", "ppo", "ppo_data", "dpo", "dpo_heldout")
    with (run_dir / "metrics.jsonl").open("a") as file:
        for name in series:
            file.writelines(json.dumps({"stage": name, "step": s, "time": 1.0, "loss": s}) + "\n" for s in range(2))
    for stages, others in ((PPO, ("dpo",)), (DPO, ("preference", "ppo"))):
        text = write_report(run_dir, stages).read_text(encoding="utf-8")
        shown = re.findall("<h2>([a-z_]+)</h2>", text)
        assert shown == ["sft", *(name for name in series if not name.startswith(others))]
        listed = re.findall('<th scope="row">([a-z]+)</th>(?=<td>(?:done|failed))', text)
        assert listed == [n for n in ("sft", "ppo", "prepare", "preference", "dpo", "evaluate") if n not in others]


def test_an_unfinished_run_has_a_report(tmp_path):
    Manifest(tmp_path).set_constitution("c")
    assert "has not run yet" in Page(write_report(tmp_path, PPO).read_text()).words


def test_malformed_inputs_are_one_line(run_dir, tmp_path):
    (run_dir / "evaluate" / "transcripts.jsonl").write_text('{"prompt": "x"}\n{oops\n')
    with pytest.raises(DataError, match=r"transcripts\.jsonl:2"):
        write_report(run_dir, PPO)
    (run_dir / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json"):
        write_report(run_dir, PPO)
    with pytest.raises(DataError, match="no such file"):
        write_report(tmp_path, PPO)


finite = st.floats(-1e100, 1e100)


@given(finite, finite)
def test_ticks_enclose_and_are_few(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    tolerance = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= low + tolerance and ticks[-1] >= high - tolerance
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))


@given(st.lists(st.tuples(st.integers(0, 10_000), finite), min_size=2, max_size=50))
def test_every_chart_is_well_formed(points):
    Page(line_chart("<x>", [(float(x), y) for x, y in sorted(points)]))
    Page(bar_chart("<x>", [y for _, y in points], "n"))
    Page(interval_chart("<x>", [("<name>", y, y - abs(y), y + abs(y)) for _, y in points]))
    Page(path_chart("<x>", [("<name>", float(x), y) for x, y in points], "<x>", "<y>"))


def test_thinning_keeps_the_mean_and_the_length():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(0.5)
    assert thin(points[:7], 100) == points[:7]


def test_the_line_goes_down_where_the_numbers_go_down():
    chart = line_chart("x", [(0.0, 2.0), (1.0, 1.0)])
    first, last = (point.split(",") for point in chart.split('points="')[1].split('"')[0].split())
    assert float(first[0]) < float(last[0]) and float(first[1]) < float(last[1])  # y grows downwards in SVG


def test_intervals_outside_0_1_have_no_bar():
    assert interval_bar(0.5, 0.4, 0.6) and not interval_bar(1.5, 1.0, 2.0)


def elo(value: float) -> dict:
    return {"value": value, "low": value - 30.0, "high": value + 30.0, "n": 40}


def everything() -> dict:
    """An evaluation with every part, hostile text wherever text can come from a model or a file."""
    names = {"base": 0.0, "sl": 150.0, "rl@5": 300.0, "rl": 420.0}
    three = {name: figure(0.5) for name in ("base", "sl", "rl")}
    return {
        "judge": "oracle", "models": {name: {"danger": figure(0.2)} for name in three}, "harm_by_revision": [0.9, 0.5],
        "pm_score_by_revision": [elo(-200.0), elo(150.0)],
        "elo": {
            "harmlessness": {name: elo(v) for name, v in names.items()}, "judges": {"harmlessness": HOSTILE},
            "helpfulness": {name: elo(-v / 20) for name, v in names.items()},
        },
        "frontier": [{"model": n, "iteration": 1, "harmlessness": v, "helpfulness": -v / 20} for n, v in names.items()],
        "measures": {
            name: {"boilerplate": figure(0.8), "phrases": [{"words": HOSTILE, "share": 0.25}]} for name in three
        },
        "robustness": {
            name: {"red_team": {"first": elo(v), "second": elo(v / 2)}} for name, v in names.items()
        },
        "absolute_harm": {"sampled": three, "greedy": three, "heldout": {"n": 12, "rmse": 0.625, "correlation": None}},
        "multiple_choice": {
            HOSTILE: {"questions": 9, "chance": 0.5, "models": {
                name: {"accuracy": figure(0.75), "too_long": 0, "kinds": {HOSTILE: {"accuracy": figure(0.5)}}}
                for name in three}}
        },
        "gate": {"passed": False, "failures": [HOSTILE]},
    }  # fmt: skip


def test_every_part_of_an_evaluation_is_shown_and_escaped() -> None:
    text = "".join(results(everything()))
    page = Page(text)
    assert not {"script", "img"} & set(page.tags) and page.words.count(HOSTILE) >= 6
    for part in (
        "Gate: ",
        "RL-CAI 5",
        "rmse 0.625",
        "half a win added on both sides of every pair",
        "9 questions, chance 0.500",
        "greedy",
    ):
        assert part in page.words, part
    assert "Elo: harmlessness: base 0 (-30 to 30), SL-CAI 150 (120 to 180)" in text
    assert "harmlessness and helpfulness (helpfulness (Elo), harmlessness (Elo)): base 0, 0, SL-CAI -7.5, 150" in text
    assert "preference-model score by revision round: round 0 -200" in text
    assert "first model&#x27;s score, red_team: from 0 to 420" in text


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=6), st.sampled_from(sorted(everything())))  # fmt: skip
def test_a_damaged_part_is_left_out_and_the_page_stays_whole(damage, key) -> None:
    if key != "models":
        Page("".join(results({**everything(), key: damage})))


def test_a_longer_interval_is_a_longer_line() -> None:
    chart = interval_chart("x", [("a", 0.0, -10.0, 10.0), ("b", 5.0, 0.0, 10.0)])
    (a, b), (c, d) = re.findall(r'class="line" x1="([0-9.]+)" x2="([0-9.]+)"', chart)
    assert float(b) - float(a) == pytest.approx(2 * (float(d) - float(c)), abs=0.2) and float(b) == float(d)
