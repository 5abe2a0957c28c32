"""The command: exit codes, one line for each error, nothing heavy imported by `check`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from cai_dist.cli import main as cli
from cai_dist.errors import CheckpointError, DataError, GateFailed, Interrupted, WorkerError
from cai_dist.tracking.lock import RunLock
from cai_dist.tracking.manifest import Manifest

HEAVY = ("torch", "ray", "transformers", "deepspeed", "wandb", "vllm", "numpy", "rich", "datasets", "pyarrow")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nconstitution: micro\nruns_dir: {tmp_path}/runs\ntracking: {{wandb: off, console: plain}}\n"
    )
    return path


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """Stands in for the pipeline: `pipeline.act` is what a run does; it is given the stop flag and what is called when
    the cluster is up."""
    module = types.ModuleType("cai_dist.stages.pipeline")
    run_dir = tmp_path / "runs" / "x"

    def finish(stop: Callable[[], bool], started: Callable[[], None]) -> None:
        Manifest(run_dir).set_constitution("c")

    def run_pipeline(config, console, should_stop, on_cluster_start):
        run_dir.mkdir(parents=True, exist_ok=True)
        module.calls.append((config.name, None))
        module.act(should_stop, on_cluster_start)
        return run_dir

    def run_stage(config, name, console, should_stop, on_cluster_start):
        module.calls.append((config.name, name))
        return run_pipeline(config, console, should_stop, on_cluster_start)

    module.calls, module.act = [], finish  # type: ignore[attr-defined]
    module.run_pipeline, module.run_stage = run_pipeline, run_stage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cai_dist.stages.pipeline", module)
    return module


def raising(error: BaseException):
    def act(stop, started):
        raise error

    return act


def test_check_is_light_and_says_where_it_would_write(run_file):
    program = (
        "import sys; from cai_dist.cli.main import main; code = main(sys.argv[1:]); "
        f"heavy = [name for name in {HEAVY} if name in sys.modules]; print('heavy:', heavy); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", str(run_file), "ppo.iterations=3"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "in order" in done.stdout and "runs/x" in done.stdout
    assert "heavy: []" in done.stdout
    assert done.stderr == ""


def test_every_mistake_of_a_run_file_is_a_line_and_exit_code_2(run_file, capsys):
    assert cli.main(["check", str(run_file), "sft.revisions=9", "constitution=/not/there"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("cai-dist: error: ") for line in lines)


def test_check_warns_of_missing_packages_and_run_refuses(run_file, capsys, monkeypatch):
    from cai_dist.config import engine

    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert cli.main(["check", str(run_file), "engine.backend=vllm"]) == 0
    assert "cai-dist: warning: engine.backend=vllm" in capsys.readouterr().err
    assert cli.main(["run", str(run_file), "engine.backend=vllm"]) == 2
    assert "cai-dist: error: engine.backend=vllm" in capsys.readouterr().err


def test_run_warns_as_check_does(run_file, capsys, pipeline):
    words = [str(run_file), "ppo.algorithm=reinforce++", "ppo.placement.value.cpus=1"]
    line = "ppo.placement.value: not looked at, there are no such workers; ppo.algorithm=reinforce++ has no value model"
    assert cli.main(["check", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"cai-dist: warning: {line}\n"
    assert "asks for: 2 CPUs at once (" in captured.out
    cli.main(["run", *words])
    captured = capsys.readouterr()
    assert "".join((captured.out + captured.err).split()).count("".join(line.split())) == 1


def test_check_prints_the_stages_and_warns_of_a_section_that_is_not_looked_at(run_file, capsys):
    assert cli.main(["check", str(run_file)]) == 0
    captured = capsys.readouterr()
    assert "stages: revise -> sft -> feedback -> preference -> ppo -> evaluate\n" in captured.out
    assert captured.err == ""
    assert cli.main(["check", str(run_file), "alignment=dpo", "dpo.beta=0.3", "preference.helpful_fraction=0.1"]) == 0
    captured = capsys.readouterr()
    assert "stages: revise -> sft -> feedback -> dpo -> evaluate\n" in captured.out
    assert captured.err == ""
    assert cli.main(["check", str(run_file), "dpo.beta=0.3"]) == 0
    assert capsys.readouterr().err == (
        "cai-dist: warning: dpo: not looked at with alignment=ppo; set alignment=dpo or leave the section out\n"
    )


def test_run_and_stage_call_the_pipeline_and_write_the_report(run_file, pipeline, tmp_path, capsys):
    assert cli.main(["run", str(run_file)]) == 0
    assert cli.main(["stage", "ppo", str(run_file), "seed=3"]) == 0
    assert pipeline.calls == [("x", None), ("x", "ppo"), ("x", None)]
    assert (tmp_path / "runs" / "x" / "report" / "index.html").exists()
    assert "report/index.html" in capsys.readouterr().out


def test_a_gate_that_is_not_passed_ends_with_8_after_the_report(run_file, pipeline, tmp_path, capsys):
    gate = {"passed": False, "failures": ["evaluate.gate.boilerplate=0.1: boilerplate is 0.8", "another"]}

    def act(stop, started):
        folder = tmp_path / "runs" / "x"
        Manifest(folder).set_constitution("c")
        (folder / "evaluation.json").write_text(json.dumps({"models": {}, "gate": gate}))

    pipeline.act = act
    assert cli.main(["run", str(run_file)]) == cli.main(["stage", "evaluate", str(run_file)]) == 8
    shown = capsys.readouterr()
    assert shown.err.splitlines()[:2] == [f"cai-dist: error: {line}" for line in gate["failures"]]
    assert "report/index.html" in shown.out and "details" not in shown.err
    assert not list((tmp_path / "runs" / "x").glob("logs/*"))
    assert cli.main(["stage", "sft", str(run_file)]) == 0  # another stage has no gate
    gate["failures"] = []
    assert cli.main(["run", str(run_file)]) == 0


def test_a_gate_on_the_way_ends_with_8_after_the_report(run_file, pipeline, tmp_path, capsys):
    def act(stop, started):
        Manifest(tmp_path / "runs" / "x").set_constitution("c")
        raise GateFailed("preference.gate=0.5: no better than chance")

    pipeline.act = act
    for words in (["run", str(run_file)], ["stage", "preference", str(run_file)]):
        assert cli.main(words) == 8
        shown = capsys.readouterr()
        assert shown.err == "cai-dist: error: preference.gate=0.5: no better than chance\n"
        assert "report/index.html" in shown.out
    assert not list((tmp_path / "runs" / "x").glob("logs/*"))


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("a.jsonl:3: no prompt"), 2), (CheckpointError("step-3 is of another run"), 1)],
)
def test_errors_of_the_family_are_one_line_with_their_code(run_file, pipeline, capsys, error, code):
    pipeline.act = raising(error)
    assert cli.main(["run", str(run_file)]) == code
    assert capsys.readouterr().err.splitlines()[0] == f"cai-dist: error: {error}"


def test_a_worker_error_leaves_its_traceback_in_the_run_folder(run_file, pipeline, tmp_path, capsys):
    pipeline.act = raising(WorkerError("sft step 3", "policy", 1, "host", "boom", detail="Traceback: deep inside"))
    assert cli.main(["run", str(run_file)]) == 1
    error, details = capsys.readouterr().err.splitlines()
    assert error == "cai-dist: error: phase sft step 3: policy[1] on host: boom"
    [log] = (tmp_path / "runs" / "x" / "logs").iterdir()
    assert details == f"cai-dist: details: {log}" and "deep inside" in log.read_text()


def test_the_unexpected_is_one_line_and_a_file(run_file, pipeline, tmp_path, capsys):
    pipeline.act = raising(KeyError("odd\nkey"))
    assert cli.main(["run", str(run_file)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    [log] = (tmp_path / "runs" / "x" / "logs").iterdir()
    assert "unexpected KeyError" in line and str(log) in line
    assert "Traceback" in log.read_text()


def test_debug_shows_the_traceback_wherever_it_stands(run_file, pipeline, capsys):
    pipeline.act = raising(RuntimeError("x"))
    for words in (["--debug", "run", str(run_file)], ["run", str(run_file), "--debug"]):
        assert cli.main(words) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_full_disk_is_one_line(run_file, pipeline, capsys):
    pipeline.act = raising(OSError(28, "No space left on device", "/big/file"))
    assert cli.main(["run", str(run_file)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "/big/file" in line and "No space left on device" in line and "make room" in line


def test_a_signal_ends_with_75_and_says_how_to_go_on(run_file, pipeline, capsys):
    def act(stop, started):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does when it starts
        started()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise Interrupted("stopped on request")

    pipeline.act = act
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["run", str(run_file), "name=a b"[:6]]) == 75
    assert signal.getsignal(signal.SIGTERM) == before
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"cai-dist: go on with: cai-dist run {run_file} name=a"


def test_workers_that_die_of_the_same_signal_are_an_interruption(run_file, pipeline, capsys):
    def act(stop, started):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop()
        raise WorkerError("sft step 3", "policy", 0, "host", "died")

    pipeline.act = act
    assert cli.main(["run", str(run_file)]) == 75
    assert "SIGUSR1, while phase sft step 3" in capsys.readouterr().err


def test_ctrl_c_before_anything_started_is_an_interruption(run_file, pipeline, capsys):
    pipeline.act = raising(KeyboardInterrupt())
    assert cli.main(["run", str(run_file)]) == 75
    assert "interrupted: Ctrl-C" in capsys.readouterr().err


def test_a_broken_pipe_inside_a_run_is_no_success(run_file, pipeline, capsys):
    pipeline.act = raising(BrokenPipeError(32, "Broken pipe"))
    assert cli.main(["run", str(run_file)]) == 1


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "n": 10}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    manifest = Manifest(folder)
    manifest.set_constitution("abc123")
    manifest.begin("sft", "f", {})
    manifest.done("sft", [], 61.0)
    manifest.begin("ppo", "f", {})
    manifest.failed("ppo", "boom [red]")
    return folder


def test_show_prints_stages_and_results(finished, capsys):
    assert cli.main(["show", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "abc123" in shown and "1m01s" in shown and "boom [red]" in shown and "no evaluation yet" in shown
    evaluation = {
        "judge": "oracle",
        "models": {name: {"danger": figure(value)} for name, value in (("base", 0.9), ("sl", 0.2), ("rl", 0.0))},
        "harm_by_revision": [0.9, 0.5],
        "labels": {"accuracy": 0.9, "ece": 0.1},
        "preference_model": {"heldout_accuracy": 0.8, "ece": None},
    }
    (finished / "evaluation.json").write_text(json.dumps(evaluation))
    assert cli.main(["show", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "RL-CAI" in shown and "0.90 (0.45–0.95)" in shown
    assert "(95% intervals over prompts, not over trainings)" in shown
    evaluation["models"]["dpo"] = evaluation["models"].pop("rl")
    evaluation["implicit_reward"] = evaluation.pop("preference_model")
    (finished / "evaluation.json").write_text(json.dumps(evaluation))
    assert cli.main(["show", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "DPO-CAI" in shown and "RL-CAI" not in shown
    assert "implicit reward of DPO-CAI: heldout_accuracy 0.800" in " ".join(shown.split())


def test_show_says_when_the_evaluation_is_older_than_the_run(finished, capsys):
    evaluation = {"judge": "oracle", "models": {}, "harm_by_revision": [], "labels": {}, "preference_model": {}}
    (finished / "evaluation.json").write_text(json.dumps(evaluation))
    manifest = Manifest(finished)
    manifest.begin("evaluate", "f", {})
    manifest.done("evaluate", [], 1.0)
    for outdated in (False, True):
        assert cli.main(["show", str(finished)]) == 0
        captured = capsys.readouterr()
        assert ("older than the run" in captured.out + captured.err) == outdated
        time.sleep(0.01)
        manifest.begin("sft", "g", {})


def test_show_says_how_a_run_stands_now_not_how_it_was_noted(finished, capsys):
    """After Ctrl-C, and after somebody has removed what a stage wrote."""
    manifest = Manifest(finished)
    manifest.begin("feedback", "f", {})
    manifest.begin("sft", "f", {})
    (finished / "sft").mkdir()
    manifest.done("sft", [finished / "sft"], 1.0)

    def shown() -> dict[str, list[str]]:
        assert cli.main(["show", str(finished)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        return {row[0]: row[1:] for row in rows if row and row[0] in ("feedback", "sft")}

    with RunLock(finished):
        rows = shown()
        assert rows["feedback"][:2] == ["running", "since"] and rows["sft"][0] == "done"
    (finished / "sft").rmdir()
    rows = shown()
    assert rows["feedback"][:2] == ["interrupted", "began"] and rows["sft"][0] == "missing"


def test_show_of_something_else_is_one_line(tmp_path, finished, capsys):
    assert cli.main(["show", str(tmp_path)]) == 2
    (finished / "evaluation.json").write_text("[1]")
    assert cli.main(["show", str(finished)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_reader_that_leaves_is_no_error(finished):
    process = subprocess.Popen(
        [sys.executable, "-m", "cai_dist", "show", str(finished)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == b""


def test_what_is_missing_is_named_and_overrides_are_not(capsys):
    for command in ("run", "check", "plan"):
        with pytest.raises(SystemExit):
            cli.main([command])
        assert capsys.readouterr().err.endswith("the following arguments are required: RUN.yaml\n")


@pytest.mark.parametrize("words", [[], ["stage", "nonsense"], ["run"], ["nonsense"]])
def test_misuse_of_the_command_ends_with_2(words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


def test_a_stage_that_the_run_does_not_have_ends_with_2(capsys, tmp_path):
    run_file = Path(cli.__file__).parents[2] / "launch" / "runs" / "demo.yaml"
    assert cli.main(["stage", "nonsense", str(run_file), f"runs_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "stage nonsense is no part of this run, whose stages are revise, sft, feedback" in line
    assert not list(tmp_path.iterdir())


def test_help_tells_the_exit_codes_and_version_prints(capsys):
    for words in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
    shown = capsys.readouterr().out
    for part in ("examples:", "exit codes:", "75", "cai-dist show", "cai-dist "):
        assert part in shown


def test_lint_is_0_with_advice_and_2_where_malformed(tmp_path, capsys):
    assert cli.main(["constitution", "lint", "default"]) == 0
    assert "in order, no advice" in capsys.readouterr().out
    text = (Path(cli.__file__).parents[1] / "constitution" / "default.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("Pick the reply that is truer", "Pick the more harmful \x1b[31mreply that is truer"))
    assert cli.main(["constitution", "lint", str(mine)]) == 2, "YAML has no escape characters"
    capsys.readouterr()
    mine.write_text(text.replace("Pick the reply that is truer", "Pick the more harmful reply, and the truer"))
    assert cli.main(["constitution", "lint", str(mine)]) == 0
    advice, summary = capsys.readouterr().out.splitlines()
    assert advice.startswith(f"{mine}: advice: comparison_principles[10] (honesty): ") and "1 line of advice" in summary
    assert cli.main(["constitution", "lint", "--strict", str(mine)]) == 1, "for CI"
    assert capsys.readouterr().out.splitlines() == [advice, summary]
    assert cli.main(["constitution", "lint", "--strict", "default"]) == 0
    capsys.readouterr()
    mine.write_text(text.replace("{principle}", "{rule}"))
    assert cli.main(["constitution", "lint", str(mine)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert "templates.comparison" in line and str(mine) in line


def test_show_and_diff_of_constitutions(tmp_path, capsys):
    from cai_dist.constitution import load_constitution

    assert cli.main(["constitution", "show", "micro"]) == 0
    shown = capsys.readouterr().out
    assert "find the danger ." in shown and "which has less peril ?" in shown
    assert load_constitution("micro").sha256 in shown
    mine = tmp_path / "mine.yaml"
    text = (Path(cli.__file__).parents[1] / "constitution" / "micro.yaml").read_text()
    mine.write_text(text.replace("which has less peril ?", "which has \u202emore peril ?"))
    assert cli.main(["constitution", "diff", "micro", str(mine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    hashes = [load_constitution(source).sha256 for source in ("micro", str(mine))]
    assert [hashes[0] in lines[0], hashes[1] in lines[1]] == [True, True]
    assert lines[2:] == [
        "comparison_principles danger-5: text",
        "  - which has less peril ?",
        "  + which has \N{REPLACEMENT CHARACTER}more peril ?",
    ]
    assert cli.main(["constitution", "diff", "micro", "micro"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["no difference"]
    assert cli.main(["constitution", "diff", "micro", str(tmp_path / "none")]) == 2


def test_check_says_what_is_left_out_and_refuses_an_unknown_id(run_file, capsys):
    assert cli.main(["check", str(run_file), "without_principles=[danger-1]"]) == 0
    assert "micro without danger-1" in capsys.readouterr().out
    assert cli.main(["check", str(run_file), "without_principles=[danger1]"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "without_principles=danger1" in line and "danger-1" in line
