"""Jobs of a Ray cluster that is up: submitted, followed and stopped over its dashboard, with the run's own exit code.

`ray job submit` ends with 1 whatever the exit code of the job was, `ray job status` with 0 even for a failed one, and a
job that is stopped is killed after 3 seconds. Here the code comes from the server, which keeps it for jobs that ended
by themselves, or, for a stopped job, from the last line of its log, which the shell around the run writes; and the time
before SIGKILL is set for each job (its supervisor reads RAY_JOB_STOP_WAIT_TIME_S from the job's own environment).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from cai_dist.errors import EXIT_FAILURE, EXIT_OK, EXIT_RESUMABLE, ConfigError, JobError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_REQUEST_SECONDS = 60.0
_LOST_SECONDS = 60.0
_LOOK_SECONDS = 15.0
_KILLED = 128
_DISCONNECTED = (ConnectionError, requests.RequestException, aiohttp.ClientError, OSError)

logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)  # it reports how its sockets close


@dataclass(frozen=True)
class Job:
    """A job as the server knows it. `status` PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; `code`: what the job ended
    with (75 for a stopped one, unless its own code is known to be another), None while it runs; `saved`: a stopped job
    came to its own end, or False where it was killed; `started` seconds since 1970."""

    name: str
    status: str
    code: int | None
    saved: bool
    message: str
    entrypoint: str
    started: float

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.code is not None


def exit_code(status: str, server_code: int | None, recorded: int | None) -> int | None:
    """`server_code`: what Ray kept (negative: the number of a signal); `recorded`: what the job's last line says."""
    if status == "SUCCEEDED":
        return EXIT_OK
    if status == "FAILED":
        code = EXIT_FAILURE if server_code is None else server_code
        return _KILLED - code if code < 0 else code
    if status == "STOPPED":
        # 128 and above: the signal came before the run could take it, or after it had done so twice.
        return EXIT_RESUMABLE if recorded is None or recorded >= _KILLED else recorded
    return None


def recorded_code(name: str, log: str) -> int | None:
    """What the shell around job `name` wrote on the last line of its log, if it did."""
    lines = log.rstrip().splitlines() or [""]
    found = re.fullmatch(rf"cai-dist job {re.escape(name)}: exit code (\d+)", lines[-1])
    return int(found[1]) if found else None


def entrypoint(name: str, directory: str | None, command: Sequence[str]) -> str:
    """The job's shell line: in `directory` (None: where Ray unpacks what was uploaded) run `command` and write its exit
    code down. SIGTERM reaches this shell, too, which waits for the command to take it."""
    where = f"cd {shlex.quote(directory)} || exit 1; " if directory else ""
    line = shlex.quote(f"cai-dist job {name}: exit code")
    return f'{where}trap : TERM; {shlex.join(command)}; code=$?; echo {line} "$code"; exit "$code"'


class _Client(JobSubmissionClient):
    """Ray's, with a deadline for every request."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": _REQUEST_SECONDS, **kwargs})


class JobServer:
    """The dashboard at `address` (http://host:port; None: $RAY_API_SERVER_ADDRESS, else this machine's port 8265).

    A cluster that has just come up refuses jobs for some seconds: it is asked for `patience` seconds. Raises JobError
    where nobody answers, ConfigError where the token is wrong.
    """

    def __init__(self, address: str | None, patience: float) -> None:
        self._patience = patience
        self.address = address or os.environ.get(_ADDRESS) or DEFAULT_ADDRESS
        os.environ[_ADDRESS] = self.address  # Ray's client prefers this variable to its argument
        self._client = self._patiently(lambda: _Client(self.address))

    def submit(
        self,
        command: Sequence[str],
        *,
        name: str = "",
        directory: str | None = None,
        working_dir: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        grace: int = 600,
    ) -> str:
        """Start `command` as a job and return its name (`name`, or a new one). `working_dir` is uploaded, without what
        git ignores; `environment` yields to env_vars of `runtime_env`; a stopped job has `grace` seconds to save.

        Raises ConfigError where the name is taken or the runtime environment is refused.
        """
        chosen = name or f"cai-{secrets.token_hex(6)}"
        given = dict(runtime_env or {})
        if working_dir is not None:
            given["working_dir"] = working_dir
        own = {"RAY_JOB_STOP_WAIT_TIME_S": str(grace), **(environment or {})}
        given["env_vars"] = own | (given.get("env_vars") or {})
        taken = chosen in {job.name for job in self.jobs()}
        if taken:
            raise ConfigError(f"--submission-id={chosen}: this cluster has a job of that name; choose another")
        self._patiently(lambda: self._submit(chosen, entrypoint(chosen, directory, command), given))
        return chosen

    def job(self, name: str) -> Job:
        """How a job stands. Raises ConfigError for an unknown name, JobError where the server does not answer."""
        details = self._ask(lambda: self._client.get_job_info(name), name)
        log = self.log(name) if details.status == "STOPPED" else ""
        return _job(details, recorded_code(name, log))

    def jobs(self) -> list[Job]:
        """All jobs that this cluster has had, oldest first; a stopped one shows 75."""
        found = [_job(details, None) for details in self._ask(self._client.list_jobs, "") if details.submission_id]
        return sorted(found, key=lambda job: job.started)

    def log(self, name: str) -> str:
        """What a job has printed, standard output and error."""
        log: str = self._ask(lambda: self._client.get_job_logs(name), name)
        return log

    def stop(self, name: str) -> bool:
        """Ask a job to save and end; False where it was over. Returns at once."""
        stopped: bool = self._ask(lambda: self._client.stop_job(name), name)
        return stopped

    async def tail(self, name: str, write: Callable[[str], None]) -> None:
        """Give `write` the log from its start, as it grows, until the job is over or the connection breaks."""
        texts = self._client.tail_job_logs(name)
        coming: asyncio.Future[str] | None = None
        while True:
            coming = coming or asyncio.ensure_future(anext(texts))
            done, _ = await asyncio.wait({coming}, timeout=_LOOK_SECONDS)
            if not done:
                # Silence: a job that has nothing to say, or a server that is gone without a word.
                if self.job(name).over:
                    return
                continue
            try:
                write(coming.result())
            except StopAsyncIteration:
                return
            coming = None

    def _submit(self, name: str, line: str, runtime_env: Mapping[str, Any]) -> None:
        try:
            self._client.submit_job(entrypoint=line, submission_id=name, runtime_env=dict(runtime_env))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"runtime environment of the job: {_line(error)}") from error
        except RuntimeError as error:
            if "status code 400" in str(error):
                raise ConfigError(f"the job is refused: {_line(error)}") from error
            # After a request that was lost on its way back, the second one finds what the first one made.
            if "already exists" not in str(error):
                raise

    def _patiently(self, act: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return act()
            except AuthenticationError as error:
                raise ConfigError(self._refusal(error)) from error
            except (RuntimeError, *_DISCONNECTED) as error:
                if time.monotonic() > deadline:
                    raise JobError(f"{self.address} does not answer: {_line(error)}") from error
                time.sleep(2)

    def _ask(self, act: Callable[[], Any], name: str) -> Any:
        try:
            return act()
        except AuthenticationError as error:
            raise ConfigError(self._refusal(error)) from error
        except _DISCONNECTED as error:
            raise JobError(f"{self.address} does not answer: {_line(error)}") from error
        except RuntimeError as error:
            if "status code 404" in str(error):
                raise ConfigError(f"{name}: no job of that name on {self.address}; `cai-dist job list`") from error
            raise JobError(f"{self.address}: {_line(error)}") from error

    def _refusal(self, error: Exception) -> str:
        return f"{self.address}: RAY_AUTH_MODE and RAY_AUTH_TOKEN must be those of the cluster: {_line(error)}"


class Follower:
    """Shows a job's log once, however often the connection breaks or `run` is interrupted."""

    def __init__(self, server: JobServer, name: str, write: Callable[[str], None]) -> None:
        self._server, self._name, self._write = server, name, write
        self._shown = 0

    def run(self) -> Job:
        """Show the log until the job is over, then return it. Raises JobError where the server is gone for a minute;
        the job then goes on, or ended with its cluster."""
        lost: float | None = None
        while True:
            try:
                asyncio.run(self._tail())
                job = self._server.job(self._name)
                lost = None
                if job.over:
                    self._show(self._server.log(self._name), 0)
                    return job
            except (JobError, RuntimeError, *_DISCONNECTED) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _LOST_SECONDS:
                    raise JobError(f"job {self._name}: lost: {_line(error)}") from error
            time.sleep(1)

    async def _tail(self) -> None:
        read = 0

        def show(text: str) -> None:
            nonlocal read
            self._show(text, read)
            read += len(text)

        await self._server.tail(self._name, show)

    def _show(self, text: str, place: int) -> None:
        """`text` begins at `place` of the log; what was shown before is left out."""
        fresh = text[max(0, self._shown - place) :]
        self._shown = max(self._shown, place + len(text))
        if fresh:
            self._write(fresh)


def _job(details: JobDetails, recorded: int | None) -> Job:
    status = str(details.status.value)
    return Job(
        name=str(details.submission_id),
        status=status,
        code=exit_code(status, details.driver_exit_code, recorded),
        saved=recorded is not None and recorded < _KILLED,
        # After an exit code the server's message is the end of the log, which the reader has.
        message=" ".join((details.message or "").split()) if details.driver_exit_code is None else "",
        entrypoint=details.entrypoint,
        started=(details.start_time or 0) / 1000,
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
