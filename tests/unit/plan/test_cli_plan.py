"""`cai-dist plan`: what it prints and its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cai_dist.cli.main import main
from cai_dist.config.loading.load import load_run
from cai_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]
LLAMA = ["launch/runs/llama8b-8gpu.yaml"]
UNKNOWN = [
    "cluster.hardware.gpus_per_node=null",
    "cluster.hardware.gpu_memory_gb=null",
    "cluster.hardware.cpu_memory_gb=null",
]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAI_DIST_DATA", raising=False)  # a plan needs no data


def test_a_run_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "launch/runs/demo.yaml", "--cpu-memory", "24"]) == 0
    out = capsys.readouterr().out
    assert "verdict: fits" in out and "128 prompts x 1 sample = 128 = 2 mini-batches x 64" in out
    assert "policy: 64 = 2 ranks x 32 sequences x 1 pass" in out


def test_a_run_that_does_not_fit_ends_with_8_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    apart = [
        "ppo.placement.mode=separate",
        "ppo.policy.ranks=4",
        "ppo.value.ranks=2",
        "ppo.placement.reference.gpus=0.5",
        "ppo.placement.reward.gpus=0.5",
        "ppo.value.gradient_checkpointing=false",
        "ppo.value.micro_batch=4",
    ]
    assert main(["plan", *LLAMA, *apart, "--json"]) == 8
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "does not fit"
    assert any("value[0]" in line for line in found["problems"])
    assert found["stages"]["ppo"]["needed_gpus"] == 8
    policy = found["stages"]["ppo"]["workers"][0]
    assert policy["role"] == "policy" and policy["device"]["update"]["weights"] == 2 * -(-8_030_261_248 // 4)
    assert found["suggestion"]["lines"].startswith("ppo:") and found["suggestion"]["seconds"] > 0


def test_machines_are_those_of_the_run_file_and_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    def machines(*words: str) -> dict[str, int]:
        main(["plan", *LLAMA, "--json", *words])
        found: dict[str, int] = json.loads(capsys.readouterr().out)["machines"]
        return found

    named = {"nodes": 1, "gpus": 8, "gpu_memory": 80 * 10**9, "cpu_memory": 10**12, "cpus": 32}
    assert machines() == named
    flags = ["--nodes", "3", "--gpus-per-node", "4", "--gpu-memory", "141", "--cpus-per-node", "9", "--cpu-memory", "2"]
    other = {"nodes": 3, "gpus": 4, "gpu_memory": 141 * 10**9, "cpu_memory": 2 * 10**9, "cpus": 9}
    assert machines(*flags) == other
    assert machines("--gpu-memory", "40") == named | {"gpu_memory": 40 * 10**9}
    assert machines("cluster.hardware.gpu_memory_gb=40.5") == named | {"gpu_memory": 405 * 10**8}


def test_what_is_not_known_of_the_machines_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LLAMA, "cluster.hardware.cpu_memory_gb=null"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict"))
    assert line.endswith("(hosts are not judged: --cpu-memory GB)")


def test_too_few_cpus_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LLAMA, "--cpus-per-node", "31"]) == 8
    assert "ppo: asks for 32 CPUs of 31 (what ppo.placement adds up to)" in capsys.readouterr().out


def written() -> list[str]:
    """The arguments of every plan of our run files that a page, a help text or a run file's head tells to make."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/runs/*.yaml"), *ROOT.glob("cai_dist/*.py")]
    texts.remove(ROOT / "docs" / "correctness.md")  # tells of plans that it would be wrong to make
    found = [re.findall(r"cai-dist plan (launch/[^`#\n]*)", path.read_text(encoding="utf-8")) for path in texts]
    # Behind two blanks stands what it is good for; rates come from a run that is not here.
    return sorted({words.partition("  ")[0].strip() for one in found for words in one if "--rates" not in words})


@pytest.mark.parametrize("words", written())
def test_every_plan_that_is_told_to_be_made_ends_in_a_verdict(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words.split()]) == 0
    verdict = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict: "))
    assert verdict in ("verdict: fits", "verdict: tight")


def test_nothing_is_judged_where_the_memory_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LLAMA, *UNKNOWN, "--gpus-per-node", "8"]) == 0
    out = capsys.readouterr().out
    assert "verdict: not judged: the run asks for 8 GPUs; say what they are: --gpu-memory GB" in out
    assert "suggestion" not in out
    assert main(["plan", *LLAMA, *UNKNOWN]) == 0
    assert "say what they are: --gpus-per-node 8 --gpu-memory GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launch/runs/demo.yaml", "ppo.zero=3"], "zero"),
        (["launch/runs/demo.yaml", "--model", "org/unknown"], "its shape is not known here"),
        (["launch/runs/demo.yaml", "--model", "critic=llama-8b"], "must be one of"),
        (["launch/runs/demo.yaml", "--nodes", "0"], "--nodes 0"),
        (["launch/runs/demo.yaml", "--rates", "/not/here"], "--rates /not/here"),
        (["launch/runs/demo.yaml", "ppo.policy={zero: 2, ds_config: zero3_offload}"], "must be the same"),
    ],
)
def test_mistakes_end_with_2_and_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from cai_dist.cli.main import main; main(['plan', 'launch/runs/demo.yaml']); "
        "print(sorted({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_variable_of_another_machine_stays_as_it_is_written() -> None:
    path = "launch/runs/llama8b-8gpu.yaml"
    with pytest.raises(ConfigError, match="'CAI_DIST_DATA' is not set"):
        load_run(path)
    assert load_run(path, elsewhere=True).data.red_team.source.startswith("${CAI_DIST_DATA}/")
