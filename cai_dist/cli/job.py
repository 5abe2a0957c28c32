"""The commands `cai-dist job submit|status|logs|stop|list`: runs as jobs of a Ray cluster that is up."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.errors import EXIT_FAILURE, EXIT_OK, EXIT_RESUMABLE, ConfigError

if TYPE_CHECKING:
    from cai_dist.cluster.ray_jobs import Job, JobServer

ABOUT = "runs as jobs of a Ray cluster that is up (its dashboard at RAY_API_SERVER_ADDRESS)"
_PASSED = ("CAI_DIST_DATA", "CAI_DIST_CACHE", "WANDB_MODE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def add_commands(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add `job` and its own commands; each sets `command`, which returns the exit code."""
    tools = commands.add_parser("job", parents=[common], help=ABOUT, description=ABOUT)
    kinds = tools.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = (
        ("submit", _submit, "run RUN.yaml as a job and follow it; its exit code"),
        ("status", _status, "how a job stands; its exit code, 0 while it runs"),
        ("logs", _logs, "what a job has printed"),
        ("stop", _stop, "let a job save and end; exit code 1 if it had to be killed"),
        ("list", _list, "all jobs of the cluster"),
    )
    for name, command, about in words:
        one = kinds.add_parser(name, parents=[common], help=about, description=about)
        one.set_defaults(command=command)
        one.add_argument("--address", metavar="URL", help="the dashboard, such as http://head:8265")
        if name == "submit":
            _submit_arguments(one)
        elif name != "list":
            one.add_argument("job", metavar="ID", help="the name of the job (`submit` says it)")
        if name == "logs":
            one.add_argument("--follow", action="store_true", help="until the job is over; its exit code")


def _submit_arguments(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--no-wait", action="store_true", help="print the name of the job and end")
    submit.add_argument("--stage", metavar="NAME", help="one stage instead of the whole pipeline")
    submit.add_argument(
        "--working-dir", metavar="DIR",
        help="upload this folder (less what git ignores) and run in the copy; default: nothing is uploaded, the nodes "
        "see this checkout ($CAI_DIST_HOME, else this folder)",
    )  # fmt: skip
    submit.add_argument("--runtime-env-json", metavar="JSON", help='Ray\'s, such as {"env_vars": {"A": "b"}}')
    submit.add_argument("--submission-id", metavar="ID", default="", help="a name for the job; default: a new one")
    submit.add_argument("--grace", metavar="SECONDS", type=int, default=600, help="to save when stopped (default 600)")
    submit.add_argument("--python", metavar="PATH", help="the interpreter as the nodes see it; default: this one")
    submit.add_argument("file", metavar="RUN.yaml", help="the run file, as the nodes see it")
    submit.add_argument(
        "overrides", metavar="key.sub=value", nargs="*", default=[], help="overrides, as of `cai-dist run`"
    )


def _submit(arguments: argparse.Namespace) -> int:
    runtime_env = _runtime_env(arguments.runtime_env_json)
    home = os.environ.get("CAI_DIST_HOME")
    python = arguments.python or (f"{home}/.venv/bin/python" if home else sys.executable)
    directory: str | None = home or os.getcwd()
    if arguments.working_dir:
        _check_upload(arguments)
        directory, python = None, arguments.python or "python3"
    what = ["stage", arguments.stage] if arguments.stage else ["run"]
    # The last override of a key counts: a job is a driver of the cluster that it is submitted to.
    command = [python, "-m", "cai_dist", *what, arguments.file, *arguments.overrides, "cluster.address=auto"]
    server = _server(arguments, patience=60.0)
    name = server.submit(
        command,
        name=arguments.submission_id,
        directory=directory,
        working_dir=arguments.working_dir,
        runtime_env=runtime_env,
        environment={"OMP_WAIT_POLICY": "passive", **{key: os.environ[key] for key in _PASSED if key in os.environ}},
        grace=arguments.grace,
    )
    if arguments.no_wait:
        print(name)
        return EXIT_OK
    _say(f"job {name} on {server.address} (Ctrl-C stops it)")
    return _follow(server, name)


def _status(arguments: argparse.Namespace) -> int:
    job = _server(arguments).job(arguments.job)
    print(_describe(job))
    return EXIT_OK if job.code is None else job.code


def _logs(arguments: argparse.Namespace) -> int:
    server = _server(arguments)
    if arguments.follow:
        return _follow(server, arguments.job)
    _write(server.log(arguments.job))
    return EXIT_OK


def _stop(arguments: argparse.Namespace) -> int:
    from cai_dist.cluster.ray_jobs import Follower

    server = _server(arguments)
    if not server.stop(arguments.job):
        job = server.job(arguments.job)
    else:
        _say(f"job {arguments.job}: asked to save and end")
        job = Follower(server, arguments.job, lambda text: None).run()
    print(_describe(job))
    return EXIT_FAILURE if _killed(job) else EXIT_OK


def _list(arguments: argparse.Namespace) -> int:
    from cai_dist.tracking.console import Console

    rows = [
        [job.name, job.status, "-" if job.code is None else str(job.code),
         time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)), job.entrypoint[:200]]
        for job in _server(arguments).jobs()
    ]  # fmt: skip
    with Console("plain") as console:
        console.table("jobs", ["job", "status", "exit code", "started", "command"], rows)
    return EXIT_OK


def _follow(server: JobServer, name: str) -> int:
    """Show the log to its end; the first Ctrl-C stops the job, the second leaves it alone. The job's exit code."""
    from cai_dist.cluster.ray_jobs import Follower

    follower, stopping = Follower(server, name, _write), False
    while True:
        try:
            job = follower.run()
            break
        except KeyboardInterrupt:
            if stopping:
                _say(f"left alone while it ends; look again with: cai-dist job logs {name} --follow")
                return EXIT_RESUMABLE
            stopping = True
            _say("stopping the job: it saves what it has (Ctrl-C once more: do not wait for it)")
            server.stop(name)
    _say(_describe(job))
    return job.code if job.code is not None else EXIT_FAILURE


def _describe(job: Job) -> str:
    from cai_dist.tracking.console import clean

    words = f"job {job.name}: {job.status}"
    if job.code is not None:
        words += f", exit code {job.code}"
    if _killed(job):
        return f"{words}: ended by a signal; what was done since the last checkpoint may be repeated"
    return clean(f"{words}: {job.message[:300]}") if job.status == "FAILED" and job.message else words


def _killed(job: Job) -> bool:
    return job.status == "STOPPED" and not job.saved


def _server(arguments: argparse.Namespace, patience: float = 0.0) -> JobServer:
    from cai_dist.cluster.ray_jobs import JobServer

    return JobServer(arguments.address, patience)


def _runtime_env(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--runtime-env-json: not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
        raise ConfigError('--runtime-env-json: must be an object such as {"env_vars": {"A": "b"}}')
    return found


def _check_upload(arguments: argparse.Namespace) -> None:
    """The copy of an uploaded folder is removed with its job: results must go elsewhere."""
    from cai_dist.config.loading.load import load_run

    folder = Path(arguments.working_dir)
    if not folder.is_dir():
        raise ConfigError(f"--working-dir={arguments.working_dir}: no such folder")
    runs_dir = load_run(str(folder / arguments.file), arguments.overrides).runs_dir
    if not Path(runs_dir).is_absolute():
        raise ConfigError(
            f"runs_dir={runs_dir}: with --working-dir it must be an absolute path on a disk that all nodes share: the "
            "uploaded copy does not outlive the job"
        )


def _write(text: str) -> None:
    """A job's own words: what would steer a terminal is made visible."""
    from cai_dist.tracking.console import clean

    sys.stdout.write(clean(text.replace("\r", "\n")))
    sys.stdout.flush()


def _say(line: str) -> None:
    print(f"cai-dist: {line}", file=sys.stderr, flush=True)
