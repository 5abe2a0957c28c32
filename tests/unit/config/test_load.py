"""Loading a run: strict, one line for each problem, and a dump that loads back equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cai_dist.config.loading.inherit import merge, takes_null
from cai_dist.config.loading.load import build_run, default_run, dump_run, is_path_key, load_run
from cai_dist.config.loading.messages import all_keys
from cai_dist.config.loading.yaml_text import dump_text, parse_value, read_document
from cai_dist.config.run import RunConfig
from cai_dist.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value).splitlines()


def test_defaults_need_a_name_alone(write):
    assert load_run(write("name: x\n")) == RunConfig(name="x")
    [line] = problems(write("seed: 1\n"))
    assert line.endswith("run.yaml: name: missing; this key must be given")


def test_a_run_without_a_file_is_the_defaults_and_what_is_laid_over_them():
    assert default_run("x") == RunConfig(name="x")
    made = default_run("x", ["seed=3", "feedback.orders=one", "seed=4"])
    assert (made.seed, made.feedback.orders, made.feedback.hard) == (4, "one", False)
    with pytest.raises(ConfigError, match=r"^override: ppo.iteratons=3: unknown key; did you mean ppo.iterations"):
        default_run("x", ["ppo.iteratons=3"])


def test_unknown_keys_name_the_nearest_valid_key_and_the_line(write):
    path = write("name: x\nppo:\n  iteratons: 3\n  kl_coefficient: 0.1\nsed: 1\n")
    assert sorted(problems(path)) == [
        f"{path}:3: ppo.iteratons=3: unknown key; did you mean ppo.iterations?",
        f"{path}:4: ppo.kl_coefficient=0.1: unknown key; did you mean ppo.kl.coefficient?",
        f"{path}:5: sed=1: unknown key; did you mean seed?",
    ]


def test_a_key_in_the_wrong_section_is_pointed_home(write):
    [line] = problems(write("name: x\niterations: 3\n"))
    assert line.endswith("did you mean ppo.iterations?")


def test_all_problems_come_together_each_on_one_line_with_its_value(write):
    path = write(
        "name: 'a b'\nseed: -1\nppo: {mini_batch: 0, policy: {zero: 5, ranks: 2.0}, clip: 1}\n"
        "sft: {revisions: last, train: {optimizer: {betas: [0.9]}}}\nfeedback: 3\n"
    )
    lines = problems(path, "world.heads=true", "ppo.kl.coefficient=x")
    expected = [
        "name='a b': must be text that matches",
        "seed=-1: must be at least 0",
        "ppo.mini_batch=0: must be at least 1",
        "ppo.policy.zero=5: must be one of 0, 1, 2 or 3",
        "ppo.policy.ranks=2.0: must be a whole number",
        "ppo.clip=1: must be less than 1",
        "sft.revisions='last': must be one of 'all' or 'final' or a whole number",
        "sft.train.optimizer.betas=[0.9]: must be a longer list",
        "feedback=3: must be a section with keys: pairs_per_prompt, ",
        "override: world.heads=True: must be a whole number",
        "override: ppo.kl.coefficient='x': must be a number",
    ]
    assert len(lines) == len(expected)
    for part in expected:
        assert sum(part in line for line in lines) == 1, part


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "ppo.mini_batch=48",
            "ppo.mini_batch=48: must divide prompts_per_iteration x samples_per_prompt = 64 x 1 = 64",
        ),
        ("world.heads=4", "world.hidden_size=64: divided by heads=4 must be a whole number of at least 32"),
        (
            "ppo.sampling.max_new_tokens=256",
            "ppo.sampling.max_new_tokens=256: leaves no room for a prompt; must be smaller than models.context=256",
        ),
    ],
)
def test_contradictions_are_single_lines_with_the_full_key(write, override, line):
    [found] = problems(write("name: x\n"), override)
    assert found.endswith(f": {line}")


def test_every_stage_that_overflows_the_context_is_named(write):
    lines = problems(write("name: x\nmodels: {context: 64}\n"))
    assert [line.split(": ")[1].split("=")[0] for line in lines] == [
        f"{stage}.sampling.max_new_tokens" for stage in ("revise", "feedback", "ppo", "evaluate")
    ]


def test_yaml_1_1_surprises_are_gone(write):
    run = load_run(
        write("name: 2024-01-01\ntracking: {wandb: off}\nsft: {train: {optimizer: {lr: 1e-5, betas: [0, 1]}}}\n")
    )
    assert (run.name, run.tracking.wandb) == ("2024-01-01", "off")
    assert run.sft.train.optimizer.lr == 1e-5
    assert run.sft.train.optimizer.betas == (0.0, 1.0)


def test_a_number_is_not_text_and_the_line_says_to_quote(write):
    [line] = problems(write("name: 7\n"))
    assert "name=7: must be text (quote it" in line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: x\nppo: [1, 2\nseed: 1\n", "run.yaml:3: not valid YAML"),
        ("name: x\nname: y\n", "run.yaml:2: name: given twice, first on line 1"),
        ("- name\n", "must be a mapping"),
        ("", "is empty"),
        ("name: !!python/object/apply:os.system ['true']\n", "run.yaml:1"),
        ("name: x\nppo: &a {kl: *a}\n", "run.yaml"),
        ("name: x\nppo: {lr: .nan}\n", "ppo.lr"),
        ("name: x\n? [a, b]\n: 3\n", "run.yaml:2"),
        ("name: \x00\n", "run.yaml"),
    ],
)
def test_malformed_files_give_one_line(write, text, part):
    [line] = problems(write(text))
    assert part in line


def test_infinities_are_refused(write):
    [line] = problems(write("name: x\nppo: {value_clip: .inf}\n"))
    assert "ppo.value_clip=inf: must be a finite number" in line


def test_missing_folder_and_binary_files(tmp_path):
    assert "no such run file" in problems(tmp_path / "none.yaml")[0]
    assert "is a folder" in problems(tmp_path)[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(tmp_path / "b.yaml")[0]


def test_extends_is_relative_to_its_file_and_merges_deeply(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("name: base\nppo: {iterations: 5, kl: {coefficient: 0.5, target: 3}}\nseed: 1\n")
    child = write("extends: ../run.yaml\nname: child\nppo: {kl: {target: null}}\n", "sub/child.yaml")
    run = load_run(child)
    assert (run.name, run.seed, run.ppo.iterations) == ("child", 1, 5)
    assert (run.ppo.kl.coefficient, run.ppo.kl.target) == (0.5, None)


def test_null_takes_an_inherited_key_back_to_its_default(write, tmp_path):
    write(
        "name: base\nseed: 7\nfeedback: {gate: 0.7}\nmodels: {chat_arguments: {style: dry, mode: x}}\n"
        "ppo: {value_warmup: 5, lora: {rank: 4}, placement: {value: {gpus: 1}, policy: {cpus: 2}}, mini_batch: 32}\n"
    )
    child = write(
        "extends: run.yaml\nname: child\nseed: null\nfeedback: {gate: null}\nmodels: {chat_arguments: {mode: null}}\n"
        "ppo: {value_warmup: null, lora: null, placement: {value: null}, mini_batch: ~}\n",
        "child.yaml",
    )
    run, plain = load_run(child), RunConfig(name="child")
    assert (run.seed, run.ppo.value_warmup, run.ppo.mini_batch) == (0, 0, plain.ppo.mini_batch)
    assert run.ppo.placement.value == plain.ppo.placement.value and run.ppo.placement.policy.cpus == 2
    assert run.models.chat_arguments == {"style": "dry"}
    assert run.feedback.gate is None is not plain.feedback.gate and run.ppo.lora is None, "null is a value of these"
    again = write("extends: child.yaml\nppo: {placement: {value: {gpus: 2}}, iterations: 3}\n", "again.yaml")
    assert load_run(again).ppo.placement.value.gpus == 2
    whole = write("extends: run.yaml\nname: whole\nppo: null\n", "whole.yaml")
    assert load_run(whole).ppo == plain.ppo
    assert load_run(tmp_path / "run.yaml", ["ppo.placement=null", "ppo.placement.policy.gpus=1"]).ppo.placement == (
        load_run(write("name: x\n", "x.yaml"), ["ppo.placement.policy.gpus=1"]).ppo.placement
    )


def test_a_null_that_takes_nothing_away_is_refused_where_it_stands(write):
    write("name: base\nppo: {iterations: 5}\n", "base.yaml")
    child = write("extends: base.yaml\nseed: null\nppo:\n  epochs: null\n  clip_high: null\n", "child.yaml")
    assert problems(child) == [
        f"{child}:2: seed=null: there is nothing to take away; child.yaml inherits no such key, so leave it out",
        f"{child}:4: ppo.epochs=null: there is nothing to take away; child.yaml inherits no such key, so leave it out",
    ]
    assert "name: missing" in problems(write("extends: base.yaml\nname: null\n", "nameless.yaml"))[0]
    assert "did you mean ppo.epochs?" in problems(write("extends: base.yaml\nppo: {epoch: null}\n", "typo.yaml"))[0]
    assert problems(write("name: x\n"), "seed=null") == ["override: seed=None: must be a whole number"]
    unread = write("extends: base.yaml\nname: null\nppo: {iterations: null, epochs: 0}\n", "no.yaml")
    assert problems(unread, "name=y") == [f"{unread}:3: ppo.epochs=0: must be at least 1"]


def test_where_null_is_a_value():
    assert (
        takes_null(("ppo", "lora")) and takes_null(("feedback", "gate")) and takes_null(("data", "red_team", "limit"))
    )
    assert takes_null(("data", "red_team", "source", "split")), "a key of one member of `a text or a section`"
    assert takes_null(("ppo", "environment", "args", "anything")), "what one's own code is given is its own matter"
    assert takes_null(("ppo",)) is takes_null(("seed",)) is takes_null(("models", "chat_arguments", "x")) is False
    assert takes_null(("ppo", "lorra")) is takes_null(("seed", "x")) is None


def test_a_problem_in_the_extended_file_is_reported_there(write):
    base = write("name: base\nppo:\n  iterations: 0\n", "base.yaml")
    assert problems(write("extends: base.yaml\n"))[0] == f"{base}:3: ppo.iterations=0: must be at least 1"


def test_circles_and_missing_parents_are_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    b = write("extends: a.yaml\n", "b.yaml")
    [line] = problems(b)
    assert "in a circle: b.yaml -> a.yaml -> b.yaml" in line
    assert "no such file" in problems(write("extends: gone.yaml\nname: x\n"))[0]
    assert "must be the path" in problems(write("extends: [a.yaml]\nname: x\n"))[0]


def test_overrides_win_in_order_and_merge_sections(write):
    path = write("name: x\nppo: {iterations: 5}\n")
    run = load_run(
        path,
        [
            "ppo.iterations=6",
            "ppo.iterations=7",
            "ppo={epochs: 3}",
            "feedback.option_labels=[X, Y]",
            "ppo.kl.target=null",
            "feedback.prefill=(",
            "data.red_team.source=/a/b=c.jsonl",
        ],
    )
    assert (run.ppo.iterations, run.ppo.epochs) == (7, 3)
    assert run.feedback.option_labels == ("X", "Y")
    assert run.feedback.prefill == "("
    assert run.data.red_team.source == "/a/b=c.jsonl"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ppo.iterations", "must have the form key.sub=value"),
        ("=3", "must have the form"),
        ("ppo..x=3", "must have the form"),
        ("name.x=3", "name='x' is a single value and has no keys of its own"),
        ("extends=a.yaml", "not on the command line"),
        ("name=[", "not valid YAML"),
        ("ppo.itertions=3", "did you mean ppo.iterations?"),
    ],
)
def test_bad_overrides_give_one_line(write, override, part):
    [line] = problems(write("name: x\n"), override)
    assert line.startswith("override: ") and part in line


def test_variables_and_home_are_expanded_in_path_fields_alone(write, monkeypatch):
    monkeypatch.setenv("SOME_WHERE", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    path = write("name: x\nruns_dir: ~/runs\ndata: {helpful: {source: '${SOME_WHERE}/h.jsonl'}}\n")
    run = load_run(path, ["ppo.policy.ds_config=${SOME_WHERE}/z.json", "feedback.prefill=${SOME_WHERE}",
                          "evaluate.multiple_choice=[world, '${SOME_WHERE}/q.jsonl']"])  # fmt: skip
    assert run.runs_dir == "/home/me/runs"
    assert run.data.helpful.source == "/data/h.jsonl"
    assert run.ppo.policy.ds_config == "/data/z.json"
    assert run.evaluate.multiple_choice == ("world", "/data/q.jsonl")
    assert run.feedback.prefill == "${SOME_WHERE}"


def test_an_unset_variable_is_named_with_its_key(write, monkeypatch):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    [line] = problems(write("name: x\nconstitution: ${NOT_SET_HERE}/c.yaml\n"))
    assert "constitution='${NOT_SET_HERE}/c.yaml'" in line and "'NOT_SET_HERE' is not set" in line


def test_path_keys_exist():
    keys = [key for key in all_keys() if is_path_key(key)]
    assert len(keys) == 7 + 5 * 3 + 10  # single ones, data sources with `path` and `hub`, DeepSpeed files


@pytest.mark.parametrize("text", ["a\x85b", "\u2028", "x\u2029 y", "\ufeffa", "a\r\nb", "off", "1e-5", "", "~"])
def test_odd_texts_survive_a_dump(text):
    assert parse_value("key", dump_text({"a": text})) == {"a": text}


def test_merge_replaces_lists_and_leaves_its_arguments():
    base, over = {"a": {"x": [1, 2], "y": 1}, "b": 2}, {"a": {"x": [3]}}
    assert merge(base, over) == {"a": {"x": [3], "y": 1}, "b": 2}
    assert base == {"a": {"x": [1, 2], "y": 1}, "b": 2}


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


@pytest.mark.slow
@given(
    name=names,
    prefill=texts,
    labels=st.tuples(texts, texts),
    lr=st.floats(1e-12, 10.0),
    seed=st.integers(0, 2**63),
    revisions=st.one_of(st.sampled_from(["all", "final"]), st.integers(1, 9)),
    target=st.none() | st.floats(0.1, 1e6),
)
def test_a_dump_loads_back_equal(tmp_path_factory, name, prefill, labels, lr, seed, revisions, target):
    data = {
        "name": name,
        "seed": seed,
        "feedback": {"prefill": prefill, "option_labels": list(labels)},
        "sft": {"revisions": revisions, "train": {"optimizer": {"lr": lr}}},
        "ppo": {"kl": {"target": target}},
    }
    run = build_run(data)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_run(run), encoding="utf-8", newline="")
    assert load_run(path) == run


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_override_values_keep_their_type(value):
    text = yaml.dump(value, Dumper=_flow(), default_flow_style=True, allow_unicode=True, width=10_000)
    found = parse_value("k", text)
    assert found == value and type(found) is type(value)


@given(st.text(max_size=30))
def test_any_override_loads_or_gives_one_line_for_each_problem(override):
    try:
        parse_value("key", override)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


def _flow():
    from cai_dist.config.loading import yaml_text

    return yaml_text._CoreDumper


@pytest.mark.parametrize(
    "text", ["1e5", "1.5", "0o7", "0x1f", "null", "~", "", "true", "off", "1_000", "=", "<<", "-.inf"]
)
def test_text_that_looks_like_something_else_survives_a_dump(tmp_path, text):
    run = build_run({"name": "x", "feedback": {"prefill": text}})
    (tmp_path / "run.yaml").write_text(dump_run(run))
    assert load_run(tmp_path / "run.yaml") == run


def test_dump_text_writes_no_aliases(tmp_path):
    shared = {"a": 1}
    path = tmp_path / "x.yaml"
    path.write_text(dump_text({"one": shared, "two": shared}))
    assert "&" not in path.read_text()
    assert read_document(path).data == {"one": shared, "two": shared}
