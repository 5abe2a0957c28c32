"""Saving and restoring a PPO run: the engines' files, the coordinator's state and the samples that wait for a later
iteration in one checkpoint, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

from cai_dist.coordinator.protocols import Checkpoints, PpoRoles
from cai_dist.coordinator.schedules import Schedule
from cai_dist.coordinator.state import PpoState
from cai_dist.errors import CheckpointError, Interrupted

STATE_FILE = "state.json"
CARRIED_FILE = "samples.json"
ROLES_FOLDER = "roles"


class Keeper:
    """Order of use: `restore` once, then in each iteration `stop_if` before it and `save_if_due` after it."""

    def __init__(
        self, checkpoints: Checkpoints, roles: PpoRoles, schedule: Schedule, identity: dict[str, int | str]
    ) -> None:
        """`identity` is what must be the same for a checkpoint to be continued: seed, data, algorithm, schedule."""
        self._checkpoints = checkpoints
        self._roles = roles
        self._schedule = schedule
        self._identity = identity
        self._saved = 0

    def restore(self, start: PpoState) -> PpoState:
        """Load the newest checkpoint into roles and schedule and return its state; `start` if there is none.

        Raises: CheckpointError if it is unreadable or belongs to another run.
        """
        found = self._checkpoints.latest()
        if found is None:
            return start
        step, folder = found
        state = self._read(step, folder)
        self._restore_samples(folder)
        self._roles.load(folder / ROLES_FOLDER)
        self._saved = state.iteration
        return state

    def stop_if(self, requested: bool, state: PpoState, iterations: int) -> None:
        """Save and raise Interrupted if a stop was requested."""
        if requested:
            self._save(state)
            raise Interrupted(
                f"PPO stopped on request after {state.iteration} of {iterations} iterations; the same command goes on"
            )

    def save_if_due(self, state: PpoState, every: int, iterations: int) -> None:
        """Save after every `every`-th iteration and after the last one."""
        if state.iteration % every == 0 or state.iteration == iterations:
            self._save(state)

    def _save(self, state: PpoState) -> None:
        if state.iteration == self._saved:  # nothing new since the last checkpoint (or since the start)
            return
        with self._checkpoints.write(state.iteration) as folder:
            content = {"identity": self._identity, **state.to_dict()}
            (folder / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            carried = self._schedule.carried()
            if carried is not None:
                (folder / CARRIED_FILE).write_text(json.dumps(carried, allow_nan=False) + "\n", encoding="utf-8")
            (folder / ROLES_FOLDER).mkdir()
            self._roles.save(folder / ROLES_FOLDER)
        self._saved = state.iteration

    def _restore_samples(self, folder: Path) -> None:
        if self._schedule.carried() is None:
            return
        path = folder / CARRIED_FILE
        try:
            self._schedule.restore(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as the samples of a PPO checkpoint: {error!r}") from error

    def _read(self, step: int, folder: Path) -> PpoState:
        path = folder / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            identity, state = content["identity"], PpoState.from_dict(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as a PPO checkpoint: {error!r}") from error
        if identity != self._identity:
            keys = sorted({*identity, *self._identity})
            different = [key for key in keys if identity.get(key) != self._identity.get(key)]
            raise CheckpointError(
                f"{folder} belongs to another run (different: {', '.join(different)}); remove it to start anew"
            )
        if state.iteration != step:
            raise CheckpointError(f"{folder} says iteration {state.iteration}, expected {step}")
        return state
