"""PPO, one iteration after the other. Everything that happens in one is on this page; how is in the phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator import update_phase
from cai_dist.coordinator.prompt_cursor import TokenizedPrompt, digest
from cai_dist.coordinator.protocols import Checkpoints, Log, PpoRoles
from cai_dist.coordinator.resume import Keeper
from cai_dist.coordinator.schedules import ScheduleContext, make_schedule
from cai_dist.coordinator.state import PpoState
from cai_dist.coordinator.timing import OnSpans, Stopwatch
from cai_dist.types import Trajectory


def train(
    roles: PpoRoles,
    prompts: Sequence[TokenizedPrompt],
    config: PpoConfig,
    *,
    seed: int,
    stop_ids: tuple[int, ...],
    checkpoints: Checkpoints,
    log: Log,
    should_stop: Callable[[], bool],
    on_rollout: Callable[[int, Sequence[Trajectory]], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    on_spans: OnSpans | None = None,
) -> PpoState:
    """Train the policy for `config.iterations` iterations, going on from the newest checkpoint if there is one.

    The same arguments give the same trajectories, however often the run is stopped or killed and started again.

    Args:
        roles: the roles of PPO, up and loaded with their first weights.
        prompts: tokenised prompts of both kinds.
        stop_ids: tokens that end a response.
        checkpoints: where to save, and where to look for something to go on from.
        log: called after each iteration with step = iterations finished.
        should_stop: asked before each iteration.
        on_rollout: called with (0-based iteration, trajectories) after each rollout phase; those that are looked at are
            brought to the driver, until the iteration ends.
        snapshot: called with the number of finished iterations where `config.snapshot_every` wants the policy kept;
            again for the same number where the run was killed before its next checkpoint.
        on_spans: called with (iterations finished, what every worker and the driver did since the last call) at the
            end of each iteration, the first transfer with the first and the last checkpoint at the end of all.

    Returns: the final state; the trained policy is in `roles`.

    Raises: Interrupted (stopped on request; all is saved), CheckpointError, DataError, StaleEngineError, WorkerError,
        WorkerTimeout.
    """
    schedule = make_schedule(ScheduleContext(roles, prompts, config, stop_ids, seed))
    identity: dict[str, int | str] = {"algorithm": config.algorithm_mark, "schedule": config.schedule}
    identity |= {"seed": seed, "prompts": digest(prompts)}
    keeper = Keeper(checkpoints, roles, schedule, identity)
    state = keeper.restore(PpoState.start(config))
    watch = Stopwatch(roles, on_spans)
    with watch.phase("transfer"):
        schedule.transfer(state.weight_version)
    watch.begin()
    for iteration in state.remaining(config.iterations):
        keeper.stop_if(should_stop(), state, config.iterations)
        with watch.phase("rollout"):
            rollout = schedule.rollout(state)
        if on_rollout is not None:
            on_rollout(iteration, rollout.trajectories)
        with watch.phase("update"):
            update = update_phase.run(roles, rollout, config, state, seed, schedule.meanwhile)
        state = state.advance(config, rollout.kl_per_response, len(rollout.trajectory_refs), rollout.statistics)
        with watch.phase("transfer"):
            sync = {f"sync_{name}": number for name, number in schedule.transfer(state.weight_version).items()}
        log(state.iteration, **rollout.metrics, **update, **sync, **watch.finish(state.iteration))
        if snapshot is not None and config.snapshot_due(state.iteration):
            snapshot(state.iteration)  # before the checkpoint: a run that goes on from it would not come by here again
        with watch.phase("checkpoint"):
            keeper.save_if_due(state, config.checkpoint_every, config.iterations)
    watch.rest(state.iteration)
    return state
