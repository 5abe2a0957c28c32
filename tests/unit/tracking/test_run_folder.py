"""The paths of a run folder: each written once, none twice, none outside."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path

import cai_dist
from cai_dist.config.stages import ALIGNMENTS, STAGES
from cai_dist.tracking.run_folder import RunFolder

ARGUMENTS = {
    "stage": [(name,) for name in ("prepare", *STAGES)],
    "aside": [("sft", 1), ("sft", 2)],
    "model": [(name,) for name in ("sft", "preference", "ppo", "dpo")],
    "heldout": [(spec.learner,) for spec in ALIGNMENTS.values()],
    "checkpoints": [(name,) for name in ("sft", "preference", "ppo", "dpo")],
    "transcripts": [(name,) for name in ("expand", "revise", "evaluate")],
    "prompts": [("red_team",), ("helpful",)],
    "expanded": [("red_team", False), ("red_team", True), ("helpful", False), ("helpful", True)],
    "snapshot": [(1,), (12,)],
    "ppo_transcript": [(1,), (12,)],
}
SAME = {"sl_model", "preference_model"}
"""Short names of models."""


def found() -> dict[str, Path]:
    """Every path of a run, by what asks for it."""
    paths = RunFolder(Path("r"))
    names = [name for name in vars(RunFolder) if not name.startswith("_")]
    by_name = {name: getattr(paths, name) for name in names if isinstance(vars(RunFolder)[name], property)}
    assert set(names) - set(by_name) == set(ARGUMENTS), "a new method: give its arguments here"
    for name, arguments in ARGUMENTS.items():
        assert all(len(given) == len(signature(getattr(paths, name)).parameters) for given in arguments)
        by_name |= {f"{name}{given}": getattr(paths, name)(*given) for given in arguments}
    return by_name


def test_no_two_names_are_one_path_and_none_is_outside() -> None:
    known = {name: path for name, path in found().items() if name not in SAME}
    assert len(set(known.values())) == len(known)
    assert all(path.parts[0] == "r" and ".." not in path.parts and len(path.parts) > 1 for path in known.values())


def test_the_paths_that_users_and_older_runs_know() -> None:
    paths = RunFolder(Path("r"))
    assert {str(path.relative_to("r")) for path in found().values()} >= {
        "config.yaml", "manifest.json", "metrics.jsonl", "evaluation.json", "report/index.html", "logs",
        "prepare/models.json", "prepare/red_team.parquet", "prepare/helpful.parquet", "prepare/human.parquet",
        "prepare/ranked.parquet", "prepare/world-model", "expand/red_team.parquet", "expand/rl_helpful.parquet",
        "expand/transcripts.md", "revise/revisions.parquet", "revise/helpful.parquet", "revise/transcripts.md",
        "sft/model", "feedback/comparisons.parquet", "feedback/principles.json", "preference/model",
        "preference/second/model", "preference/heldout.json", "ppo/model", "ppo/snapshots/iteration-00012",
        "ppo/transcripts/iteration-00001.jsonl", "ppo/timeline.json", "ppo/placement.json", "dpo/model",
        "dpo/heldout.json", "evaluate/transcripts.jsonl", "evaluate/transcripts.md", "endpoint/answers.jsonl",
    }  # fmt: skip
    assert paths.sl_model == paths.model("sft") and paths.preference_model == paths.model("preference")


def test_no_other_file_writes_a_path_of_the_run() -> None:
    """A path begins with the run folder: who joins a text to it, or to another path's parent, writes one anew."""
    joined = re.compile(r"(?:run_dir|\.root|\.paths\.\w+(?:\([^)]*\))?) / f?\"")
    named = re.compile(r"/ f?\"[\w.-]*(?:revisions|comparisons|heldout|evaluation|principles|manifest|metrics)\.\w+\"")
    assert joined.search('ctx.run_dir / "sft"') and joined.search('ctx.paths.model("sft") / "x"')
    assert named.search('folder / "heldout.json"')
    package = Path(cai_dist.__file__).parent
    guilty = [
        f"{path.relative_to(package)}:{number}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "run_folder.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if joined.search(line) or named.search(line)
    ]
    assert not guilty
