"""The command `cai-dist`. Only what a command needs is imported, when it needs it: `check` answers in a second."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.cli import constitution, doctor, job, merge, plan
from cai_dist.config.stages import EVALUATE, STAGES
from cai_dist.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_RESUMABLE,
    CaiError,
    DataError,
    GateFailed,
    Interrupted,
    UserError,
    WorkerError,
)
from cai_dist.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from cai_dist.config.run import RunConfig
    from cai_dist.tracking.manifest import State

_DESCRIPTION = """\
Constitutional AI, distributed: from a written constitution and a helpful-only model to a harmless one, in stages
(revise, sft, feedback, preference, ppo, evaluate; with alignment=dpo, revise, sft, feedback, dpo, evaluate; with
expand.prompts above 0, expand before them).
A run is one YAML file; its results lie in RUNS_DIR/NAME."""

_EPILOG = """\
examples:
  cai-dist check launch/runs/demo.yaml                    is this run in order? reads its data, starts nothing
  cai-dist run launch/runs/demo.yaml                      the whole pipeline, into runs/demo/
  cai-dist run launch/runs/demo.yaml name=short ppo.iterations=3 seed=1
  cai-dist stage ppo launch/runs/demo.yaml                one stage; the ones before it must be finished
  cai-dist show runs/demo                                 how a run stands, and its results
  cai-dist merge runs/mine/sft/model merged               an adapter and its base as one whole model
  cai-dist plan launch/runs/demo.yaml                     what it takes and whether it fits (starts nothing)
  cai-dist plan launch/runs/llama8b-8gpu.yaml             the same for the eight GPUs that it names
  cai-dist doctor                                         what this machine, or a cluster, lacks
  cai-dist job submit launch/runs/demo.yaml               as a job of a Ray cluster that is up
  cai-dist constitution lint mine.yaml                    is a constitution in order? with advice
  cai-dist constitution diff default mine.yaml            what differs; show prints one

  The same command again goes on where it stopped: finished stages and shards are skipped.
  Ctrl-C, SIGTERM or SIGUSR1 stop at the next safe point; Ctrl-C twice stops at once.

exit codes:
  0   done
  1   a failure at run time
  2   a mistake in the configuration, the data or the command; a check of `doctor` fails
  8   stopped after a stage that is no better than chance (feedback.gate, preference.gate), or done, but a measure
      is outside its bound (evaluate.gate); `plan`: the run does not fit
  9   a training came to numbers that are not finite; what was saved before is whole
  75  interrupted, or a node was lost; the same command goes on
"""

_OVERRIDES_HELP = "overrides, typed as in YAML: ppo.iterations=3 name=x data.red_team.source=/a/b.jsonl"
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `cai_dist.errors`); every error is one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parsed(words)
    try:
        code: int = arguments.command(arguments)
    except (Interrupted, KeyboardInterrupt) as error:
        _complain(f"cai-dist: interrupted: {_one_line(error) or 'Ctrl-C'}")
        _complain(f"cai-dist: go on with: {shlex.join(['cai-dist', *words])}")
        code = EXIT_RESUMABLE
    except BrokenPipeError as error:
        # The reader of a table has left (`cai-dist show … | head`); a run's own display does not raise this.
        code = _report(error, arguments.run_dir, arguments.debug) if arguments.command is _run else EXIT_OK
    except Exception as error:
        code = _report(error, arguments.run_dir, arguments.debug)
    _flush()
    return code


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Overrides may stand behind options, too: argparse alone takes them only side by side with the run file."""
    parser = _parser()
    # Given by hand: a default of the parser would overwrite what stood before the command's name.
    arguments, left = parser.parse_known_args(words, argparse.Namespace(debug=False))
    if left and not (hasattr(arguments, "overrides") and all(_OVERRIDE.match(word) for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _flush() -> None:
    """Flush standard output; where its reader has left, point it to nowhere, so that Python's exit is quiet."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    # One parser for options that may stand before or after the command's name.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        "cai-dist",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.set_defaults(run_dir=None)
    parser.add_argument("--version", action="version", version=f"cai-dist {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", parents=[common], help="run the whole pipeline, or go on with it")
    run.set_defaults(command=_run, stage=None)
    stage = commands.add_parser("stage", parents=[common], help="run one stage")
    stage.add_argument("stage", metavar="NAME", help=f"one of: {', '.join(STAGES)}, or of `own_stages`")
    stage.set_defaults(command=_run)
    check = commands.add_parser(
        "check", parents=[common], help="is a run in order? reads the run file and the data; starts nothing"
    )
    check.add_argument(
        "--deep", action="store_true", help="try each model's architecture in small, too (half a minute, no weights)"
    )
    check.set_defaults(command=_check)
    for one in (run, stage, check):
        one.add_argument("file", metavar="RUN.yaml", help="the run file")
        one.add_argument("overrides", metavar="key.sub=value", nargs="*", default=[], help=_OVERRIDES_HELP)
    show = commands.add_parser("show", parents=[common], help="how a run stands, and its results")
    show.add_argument("folder", metavar="RUN_DIR", type=Path, help="the folder of a run, such as runs/demo")
    show.set_defaults(command=_show)
    constitution.add_commands(commands, common)
    merge.add_commands(commands, common)
    plan.add_commands(commands, common)
    doctor.add_commands(commands, common)
    job.add_commands(commands, common)
    return parser


def _load(arguments: argparse.Namespace, ready: bool) -> RunConfig:
    from cai_dist.config.checks.run import check_run
    from cai_dist.config.loading.load import load_run
    from cai_dist.constitution.check import check_constitution
    from cai_dist.stages.preflight.strategies import check_strategies

    config = load_run(arguments.file, arguments.overrides)
    check_strategies(config)
    check_run(config, ready=ready)
    check_constitution(config)
    return config


def _check(arguments: argparse.Namespace) -> int:
    from cai_dist.config.checks.run import missing_packages, run_warnings
    from cai_dist.config.demand import demand_line
    from cai_dist.stages.preflight.inventory import take_inventory

    config = _load(arguments, ready=False)
    found = take_inventory(config)
    if arguments.deep and not found.problems:
        from cai_dist.stages.preflight.deep_check import check_models
        from cai_dist.tracking.console import Console

        with Console("plain", stream=sys.stderr) as console:
            tried = check_models(config, console)
        found.problems += tried.problems
        found.warnings += tried.notes
    for line in (*missing_packages(config), *run_warnings(config), *found.warnings):
        _complain(f"cai-dist: warning: {line}")
    if found.problems:
        raise DataError("\n".join(dict.fromkeys(found.problems)))
    print(f"{arguments.file}: in order; it writes to {Path(config.runs_dir) / config.name}")
    print(f"stages: {' -> '.join(config.stages)}")
    print(demand_line(config))
    for line in found.seen:
        print(line)
    unseen = [*found.unseen, *([] if arguments.deep else ["what --deep tries"])]
    print(f"not looked at: {'; '.join(unseen)}") if unseen else None
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    """`run` and `stage`."""
    config = _load(arguments, ready=True)
    from cai_dist.api.runs import run_and_report
    from cai_dist.config.checks.run import run_warnings
    from cai_dist.tracking.console import Console
    from cai_dist.tracking.signals import StopFlag

    arguments.run_dir = Path(config.runs_dir) / config.name
    with StopFlag() as stop, Console(config.tracking.console) as console:
        for line in run_warnings(config):
            console.warn(line)
        try:
            run_and_report(config, arguments.stage, console, stop, stop.install)
        except CaiError as error:
            # A signal to the whole process group also ends workers: what then fails was asked for.
            if stop() and not isinstance(error, (Interrupted, UserError, GateFailed)):
                _write_detail(error, arguments.run_dir)
                raise Interrupted(f"{stop.signal_name}, while {_one_line(error)}") from error
            raise
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    from cai_dist.tracking.console import Console
    from cai_dist.tracking.manifest import constitution_of, read_manifest, standings

    folder: Path = arguments.folder
    manifest = read_manifest(folder)
    with Console("plain") as console:
        called, sha256 = constitution_of(manifest)
        console.say(f"run {manifest.get('name', folder.name)}  constitution {called} {sha256 or '-'}")
        versions = manifest.get("versions", {})
        console.say("  ".join(f"{name} {version}" for name, version in versions.items()))
        rows = [
            [name, now.state, _time(entry, now.state), str(len(entry["outputs"])), now.why]
            for (name, entry), now in zip(manifest["stages"].items(), standings(folder, manifest).values(), strict=True)
        ]
        console.table("stages", ["stage", "status", "time", "outputs", "what is wrong"], rows)
        evaluation = _evaluation(folder)
        if evaluation is None:
            console.say("no evaluation yet")
        else:
            from cai_dist.stages.evaluation.terminal_table import show_results

            if _outdated(manifest["stages"]):
                console.warn("a stage was begun after the last evaluation: the figures below are older than the run")
            show_results(console, folder, evaluation)
    return EXIT_OK


def _outdated(stages: dict[str, Any]) -> bool:
    """Whether a stage (the evaluation too) was begun after the last evaluation that ended."""
    evaluated = stages.get(EVALUATE, {})
    begun = max((entry.get("started", 0.0) for entry in stages.values()), default=0.0)
    return evaluated.get("status") != "done" or begun > evaluated.get("started", begun)


def _time(entry: dict[str, Any], state: State) -> str:
    """How long a stage took; for one that never ended, what is known is when it began."""
    from cai_dist.tracking.console import duration

    if entry["status"] != "running":
        return duration(entry["seconds"])
    if "started" not in entry:
        return "-"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["started"]))
    return f"since {when}" if state == "running" else f"began {when}"


def _evaluation(folder: Path) -> dict[str, Any] | None:
    path = RunFolder(folder).evaluation
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("models"), dict):
            return found
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    raise DataError(f'{path}: not an evaluation ("models" is missing)')


def _report(error: Exception, run_dir: Path | None, debug: bool) -> int:
    """One line for each problem on standard error, the traceback in a file (`debug`: on the screen); the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, CaiError):
        lines = [" ".join(line.split()) for line in str(error).splitlines()] or [type(error).__name__]
        for line in lines:
            _complain(f"cai-dist: error: {line}")
        if not isinstance(error, (UserError, GateFailed)) and (written := _write_detail(error, run_dir)):
            _complain(f"cai-dist: details: {written}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (*_NO_SPACE, *_NO_ACCESS):
        what = "make room" if error.errno in _NO_SPACE else "check the permissions"
        where = error.filename or run_dir or "a file"
        _complain(f"cai-dist: error: cannot write or read {where}: {error.strerror}; {what} and run the same again")
        return EXIT_FAILURE
    written = _write_log(traceback.format_exception(error), run_dir)
    where = f"; traceback: {written}" if written else "; --debug shows the traceback"
    _complain(f"cai-dist: error: unexpected {type(error).__name__}: {_one_line(error)}{where}")
    return EXIT_FAILURE


def _write_detail(error: CaiError, run_dir: Path | None) -> Path | None:
    """The traceback of a failure at run time, with the worker's own where it came from one."""
    detail = [error.detail.rstrip() + "\n\n"] if isinstance(error, WorkerError) and error.detail else []
    return _write_log([*detail, *traceback.format_exception(error)], run_dir)


def _write_log(lines: Sequence[str], run_dir: Path | None) -> Path | None:
    """`logs/error-TIME-PID.txt` in the run folder, or in a new temporary folder where that cannot be written."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    text = "".join(lines)
    with contextlib.suppress(OSError):
        if run_dir is not None and run_dir.is_dir():
            folder = RunFolder(run_dir).logs
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
            return folder / name
    with contextlib.suppress(OSError):
        path = Path(tempfile.mkdtemp(prefix="cai_dist-")) / name
        path.write_text(text, encoding="utf-8", errors="replace")
        return path
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _complain(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _version() -> str:
    try:
        return metadata.version("cai_dist")
    except metadata.PackageNotFoundError:
        return "(not installed)"
