"""Row 19 of what people bring: `cai-dist check` reads what it says is in order, and says what it did not look at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cai_dist.cli import main as cli

GOOD = [json.dumps({"prompt": f"What is the weather on day {n}?"}) for n in range(12)]
SOME = "\n".join(GOOD[:4]) + "\n"
BROKEN: dict[str, tuple[bytes, str, str]] = {
    # name: content, place, what is said
    "a comma too many": ((SOME + '{"prompt": "a",}\n').encode(), ":5", "not a line of JSON"),
    "half a line": ((SOME + '{"prompt": "a').encode(), ":5", "not a line of JSON"),
    "single quotes": ((SOME + "{'prompt': 'a'}\n").encode(), ":5", "not a line of JSON"),
    "latin-1": ((SOME + '{"prompt": "für"}\n').encode("latin-1"), ":5", "UTF-8"),
    "utf-16": (SOME.encode("utf-16"), ":1", "UTF-8"),
    "a wrong key": ((SOME + '{"promt": "x"}\n').encode(), ":5", "did you mean 'prompt'"),
    "texts": ((SOME + '"How?"\n').encode(), ":5", "expected a JSON object"),
    "a list": ((SOME + '["How?"]\n').encode(), ":5", "expected a JSON object"),
    "null": ((SOME + "null\n").encode(), ":5", "expected a JSON object"),
    "a number": ((SOME + '{"prompt": 3}\n').encode(), ":5", "prompt"),
    "an unknown role": ((SOME + '{"prompt": [{"role": "me", "content": "x"}]}\n').encode(), ":5", "role"),
    "not gzip": (b"no gzip at all\n", "p.jsonl.gz:1", "gzip"),
    "not parquet": (b"PAR", "p.parquet", "Parquet"),
    "answers at the end": (
        b'{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n' * 30,
        ":1",
        "30 skipped: the prompt ends with an answer",
    ),
    "all empty": (b'{"prompt": ""}\n' * 3, ":1", "3 skipped: the prompt is empty"),
    "nothing": (b"", "p.jsonl", "0 different prompts"),
}


@pytest.fixture
def run_file(tmp_path: Path) -> Any:
    """A run file whose prompts are a file; `write(name, content, **sections)` gives its path."""

    def write(name: str = "p.jsonl", content: bytes = "\n".join(GOOD).encode(), **sections: Any) -> str:
        (tmp_path / name).write_bytes(content)
        source = {"source": str(tmp_path / name), "heldout": 2}
        data = {"red_team": source, "helpful": {"source": "world"}, "helpful_comparisons": {"source": "none"}}
        tree = {
            "name": "x",
            "constitution": "micro",
            "runs_dir": str(tmp_path / "runs"),
            "data": data | sections.pop("data", {}),
            "preference": {"helpful_fraction": 0},
            "evaluate": {"elo": {"judge": "preference"}} | sections.pop("evaluate", {}),
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree | sections))
        return str(tmp_path / "run.yaml")

    return write


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line_with_its_place_and_exit_code_2(case: str, run_file: Any, tmp_path, capsys) -> None:
    content, place, said = BROKEN[case]
    name, colon, line = place.partition(":")
    name = name or "p.jsonl"
    assert cli.main(["check", run_file(name, content)]) == 2
    captured = capsys.readouterr()
    [shown] = captured.err.splitlines()
    assert shown.startswith("cai-dist: error: data.red_team: ") and f"{tmp_path / name}{colon}{line}" in shown
    assert said in shown and captured.out == ""


def test_what_was_read_is_counted_and_what_was_skipped_is_warned_of_with_its_place(run_file, tmp_path, capsys) -> None:
    lines = [*GOOD, GOOD[0], '{"prompt": "  "}']
    assert cli.main(["check", run_file(content="\n".join(lines).encode())]) == 0
    captured = capsys.readouterr()
    path = tmp_path / "p.jsonl"
    assert (
        f"data.red_team: {path}: 14 records, 1 of them duplicates, 1 skipped; 10 prompts to train on, 2 held out\n"
        in captured.out
    )
    assert captured.err == (
        f"cai-dist: warning: data.red_team: {path}: of 14 records 1 skipped: the prompt is empty (first: {path}:14)\n"
    )


def test_every_file_is_read_and_every_broken_one_is_a_line(run_file, tmp_path: Path, capsys) -> None:
    broken = {
        "comparisons.jsonl": '{"prompt": "p", "chosen": "a"}',
        "ranked.jsonl": '{"question": "q", "answers": 3}',
        "ratings.jsonl": '{"prompt": "p", "response": "r", "rating": 9}',
        "choices.jsonl": '{"input": "q", "target_scores": []}',
    }
    for name, text in broken.items():
        (tmp_path / name).write_text(text + "\n")
    file = run_file(
        data={
            "helpful_comparisons": {"source": str(tmp_path / "comparisons.jsonl")},
            "ranked_answers": {"source": str(tmp_path / "ranked.jsonl")},
            "harm_ratings": {"source": str(tmp_path / "ratings.jsonl")},
        },
        evaluate={"multiple_choice": [str(tmp_path / "choices.jsonl")]},
    )
    assert cli.main(["check", file]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken)
    assert all(f"{tmp_path / name}:1: " in line for name, line in zip(broken, lines, strict=True))


def model(folder: Path, **files: Any) -> str:
    """A model folder as its JSON files alone say it; None takes a file away."""
    default = {
        "config.json": {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
        "tokenizer.json": {},
        "model.safetensors": {},
    }
    folder.mkdir()
    for name, content in (default | files).items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": "{broken"}, "config.json: not a readable JSON file"),
        ({"config.json": "[]"}, "config.json: must hold one JSON object"),
        ({"config.json": {"vocab_size": 3}}, "config.json names no model_type"),
        ({"model.safetensors": None, "pytorch_model.bin": "x"}, "no weights in *.safetensors"),
        (
            {"model.safetensors.index.json": {"weight_map": {"a": "model-00002-of-00002.safetensors"}}},
            "names model-00002-of-00002.safetensors, which is not there",
        ),
        ({"tokenizer.json": None}, "holds no tokenizer"),
        ({"tokenizer_config.json": {}}, "its tokenizer has no chat template; set models.chat=plain"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json: not a readable JSON file"),
        ({"generation_config.json": "{"}, "generation_config.json: not a readable JSON file"),
        (
            {"config.json": {"model_type": "gemma3", "text_config": {"max_position_embeddings": 64}}},
            "takes at most 64 tokens, and models.context=256",
        ),
        (
            {"config.json": {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}},
            "quantised (awq), which cannot be trained",
        ),
    ],
    ids=[
        "broken",
        "list",
        "no type",
        "no weights",
        "half the weights",
        "no tokenizer",
        "no template",
        "broken tokenizer",
        "broken generation",
        "short",
        "quantised",
    ],
)
def test_a_model_folder_that_would_end_the_run_is_one_line(files, said, run_file, tmp_path: Path, capsys) -> None:
    path = model(tmp_path / "m", **files)
    assert cli.main(["check", run_file(models={"pretrained": path})]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("cai-dist: error: models.pretrained") and said in line and path in line


def test_what_was_not_looked_at_is_said(run_file, tmp_path: Path, capsys) -> None:
    path = model(tmp_path / "m")
    hub = {"red_team": {"source": {"hub": "org/prompts"}, "heldout": 2}}
    file = run_file(
        models={"assistant": path, "pretrained": path, "feedback": "org/name"}, data=hub, constitution="default"
    )
    assert cli.main(["check", file, "data.helpful.source=" + str(tmp_path / "p.jsonl"), "data.helpful.heldout=2"]) == 0
    out = capsys.readouterr().out
    assert (
        f"models.assistant and models.pretrained: {path}: llama, vocab_size 32000, max_position_embeddings 4096\n"
        in out
    )
    assert "constitution: default: 16 critique principles, 16 comparison principles\n" in out
    [unseen] = [line for line in out.splitlines() if line.startswith("not looked at: ")]
    for what in (
        "org/prompts",
        "models.feedback=org/name (not a folder",
        f"the weights in {path}",
        "what --deep tries",
    ):
        assert what in unseen


def test_reading_the_data_is_light(run_file) -> None:
    program = (
        "import sys; from cai_dist.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = [n for n in ('torch', 'transformers', 'ray', 'numpy', 'datasets', 'pyarrow') if n in sys.modules]; "
        "print('heavy:', heavy); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", run_file()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout and "12 records; 10 prompts to train on, 2 held out" in done.stdout
