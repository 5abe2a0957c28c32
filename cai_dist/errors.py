"""The family of errors of cai_dist and the exit code each ends a command with.

Every class is picklable with its fields (Ray carries exceptions between processes by pickle) and derives from the
standard-library exception that a reader would expect beside `CaiError`.

Exit codes: 0 done, 1 a failure at run time, 2 a mistake in configuration or data, 8 a gate is not passed
(`feedback.gate`, `preference.gate`, `evaluate.gate`), 9 a training came to numbers that are not finite, 75 interrupted
but resumable.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_GATE = 8
EXIT_NOT_FINITE = 9
EXIT_RESUMABLE = 75


class CaiError(Exception):
    """Root of the family; `exit_code` is what the command line ends with."""

    exit_code = EXIT_FAILURE


class UserError(CaiError, ValueError):
    """A mistake of the user: one line that says what, where and what to do."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """A key of the run file or an override is wrong; names the key, the value and what is allowed."""


class DataError(UserError):
    """An input file is missing, malformed or too small; names the file (and line) and what is expected."""


class GateFailed(CaiError):
    """What was done is written, but figures are out of bounds, a line each: the labels or the preference model are no
    better than chance and the run has stopped (`feedback.gate`, `preference.gate`), or the run is done and its model
    over-reacts (`evaluate.gate`)."""

    exit_code = EXIT_GATE


class Interrupted(CaiError):
    """The run was asked to stop (SIGINT, SIGTERM, SIGUSR1); all is saved, the same command goes on."""

    exit_code = EXIT_RESUMABLE


class WorkerError(CaiError, RuntimeError):
    """A worker failed, died or did not answer in time.

    `phase` what was being done, `role` policy/value/…, `rank` within the group (-1: the whole group), `node` host or
    address, `weight_version` the version of the weights that the worker held (-1: none), `cause` one line.
    """

    def __init__(
        self, phase: str, role: str, rank: int, node: str, cause: str, weight_version: int = -1, detail: str = ""
    ) -> None:
        super().__init__(phase, role, rank, node, cause, weight_version, detail)
        self.phase, self.role, self.rank, self.node = phase, role, rank, node
        self.cause, self.weight_version, self.detail = cause, weight_version, detail

    def __str__(self) -> str:
        where = f"{self.role}[{self.rank}]" if self.rank >= 0 else self.role
        version = f", weight version {self.weight_version}" if self.weight_version >= 0 else ""
        return f"phase {self.phase}: {where} on {self.node}{version}: {self.cause}"


class WorkerDied(WorkerError):
    """The process of a worker, or its node, is gone; another worker may do what it had in hand."""


class NodeLost(WorkerDied):
    """The node of a worker is gone with all that ran on it. What was saved is whole: the same command goes on."""

    exit_code = EXIT_RESUMABLE

    def __str__(self) -> str:
        return f"{super().__str__()}; go on with the same command (exit code {self.exit_code})"


class WorkerTimeout(WorkerError, TimeoutError):
    """A worker did not answer before the deadline of the wait."""


class NonFiniteError(CaiError, ArithmeticError):
    """A loss, a gradient norm or weights of a training are NaN or infinite; all ranks raise it, before anything that
    was good is overwritten. The same command would come to the same again."""

    exit_code = EXIT_NOT_FINITE


class WorkerDiverged(WorkerError):
    """A `WorkerError` where the cause is a `NonFiniteError` of the worker."""

    exit_code = EXIT_NOT_FINITE


class EndpointError(CaiError, RuntimeError):
    """A server of `feedback.endpoint` did not answer, or not so that its answer could be used, after all retries. What
    it has answered is kept: the same command asks for the rest alone."""


class JobError(CaiError, RuntimeError):
    """A Ray job server did not answer or did not take a job; a job that was running goes on."""


class WeightTransferError(CaiError, RuntimeError):
    """A transfer was incomplete, inconsistent or out of order; the receiving engine stays STALE."""


class StaleEngineError(CaiError, RuntimeError):
    """An engine was asked to serve before it had finished a weight transfer."""


class CheckpointError(CaiError, RuntimeError):
    """A checkpoint is incomplete or does not belong to this run."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """Kind and words of somebody else's error on one line of at most `longest` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]
