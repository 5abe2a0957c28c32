"""The facts of a real machine, what a run needs, and the command."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from cai_dist.cli import doctor
from cai_dist.cli import main as cli
from cai_dist.config.loading.load import load_run
from cai_dist.doctor import examine, examiner
from cai_dist.doctor.checks import Check
from cai_dist.doctor.examiner import Examiner
from cai_dist.doctor.facts import code_hash, probe_folder, token_hash, versions
from cai_dist.doctor.needs import Needs, needs_of

ROOT = Path(__file__).parents[3]
CACHE = Path("/cache")


def needs(*overrides: str) -> Needs:
    return needs_of(load_run(str(ROOT / "launch/runs/demo.yaml"), list(overrides)), CACHE)


def test_a_folder_is_probed_where_it_will_be_made_and_left_as_it_was(tmp_path: Path) -> None:
    found = probe_folder("run folder", str(tmp_path / "runs" / "x"))
    assert (found.path, found.problem) == (str(tmp_path), "") and found.free_gib > 0
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    assert probe_folder("cache", str(file)).problem == "Not a directory"


def test_a_token_is_known_by_a_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert token_hash() == ""
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    from_file = token_hash()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert token_hash() == from_file and len(from_file) == 8 and "secret" not in from_file


def test_versions_and_code() -> None:
    assert versions().keys() >= {"python", "torch", "ray"}
    assert code_hash() == code_hash() and len(code_hash()) == 8


def test_what_a_run_needs(tmp_path: Path) -> None:
    plain = needs("runs_dir=/r", "name=x", "tracking.wandb=off")
    assert plain == Needs(1, False, "", (), (("run folder", "/r/x"),))
    assert needs("cluster.threads=4").threads == 4
    assert needs("cluster.gpus=1").gpus and needs("ppo.placement.policy.gpus=1").gpus
    assert needs("tracking.wandb=online").packages == ("wandb",)
    vllm = needs("engine.backend=vllm")
    assert vllm.packages == ("vllm",) and vllm.compiler.startswith("engine.backend=vllm")
    assert ("cache", "/cache") in needs("models.assistant=smollm2").shared
    own = tmp_path / "ds.json"
    own.write_text('{"zero_optimization": {"stage": 3}, "optimizer": {"params": {"torch_adam": true}}}')
    assert needs(f"ppo.policy.ds_config={own}").compiler == ""
    own.write_text('{"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam", "params": {}}}')
    assert needs(f"ppo.policy.ds_config={own}").compiler.startswith("ppo.policy.ds_config")
    assert needs("sft.train.sharding.ds_config=zero3_offload", "sft.train.sharding.zero=3").compiler == ""


def test_files_of_other_nodes_are_waited_for_and_no_longer_than_told(tmp_path: Path) -> None:
    here = Examiner()
    assert here.write(str(tmp_path), "a", "1") == ""
    assert here.read(str(tmp_path), {"a": "1"}, 5.0)[0] == ""
    started = time.monotonic()
    assert here.read(str(tmp_path), {"a": "1", "b": "2"}, 0.2)[0].startswith("1 of 2 files not seen")
    assert here.read(str(tmp_path), {"a": "another content"}, 0.0)[0].startswith("1 of 1 files not seen")
    assert "no such folder here" in here.read(str(tmp_path / "none"), {"a": "1"}, 0.0)[0]
    assert time.monotonic() - started < 60
    here.remove(str(tmp_path), ["a", "never written"])
    assert list(tmp_path.iterdir()) == []
    assert here.write(str(tmp_path / "none"), "a", "1") == "No such file or directory"


def test_ports_that_listen_and_ports_that_do_not() -> None:
    here = Examiner()
    assert here.reach("127.0.0.1", here.listen(), 5.0) == ""
    with socket.socket() as server:  # bound, but nobody listens
        server.bind(("127.0.0.1", 0))
        assert here.reach("127.0.0.1", server.getsockname()[1], 5.0) == "Connection refused"


@pytest.mark.slow
def test_an_all_reduce_of_two_processes() -> None:
    assert examine._reduce_here("gloo", 2) == ["", ""]


def test_a_rank_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(examiner.sys, "executable", str(hangs))
    assert Examiner().all_reduce("gloo", [0, 1], 2, "127.0.0.1", 1, 0.1) == ["hangs", "hangs"]
    hangs.write_text("#!/bin/sh\necho a library said this >&2; kill -ABRT $$\n")
    assert Examiner().all_reduce("gloo", [0], 1, "127.0.0.1", 1, 5.0) == ["a library said this"]


def test_nobody_at_the_address_is_a_failed_check_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cli.main(["doctor", "--address", address, "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["failed"] == 1 and "cannot be joined" in shown["checks"][0]["found"]
    assert "RAY_AUTH_TOKEN" in shown["checks"][0]["advice"]


@pytest.mark.parametrize(("states", "code"), [(("ok", "warn"), 0), (("ok", "fail"), 2)])
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], states, code) -> None:
    rows = [Check("n", state, "found so", state, "do this") for state in states]
    monkeypatch.setattr(examine, "examine_machine", lambda *_: rows)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert "do this" in shown and f"2 checks, {states.count('fail')} failed" in shown


def test_nodes_that_agree_share_a_row_and_failures_come_first() -> None:
    rows = [Check("a", "x", "1"), Check("b", "x", "1"), Check("c", "x", "2", "fail", "do")]
    assert doctor._rows(rows) == [["c", "x", "fail", "2", "do"], ["a, b", "x", "ok", "1", ""]]


def test_a_run_file_with_a_mistake_is_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nno_such_key: 1\n")
    assert cli.main(["doctor", "--run", str(tmp_path / "bad.yaml")]) == 2
    assert "no_such_key" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "runs")
