"""PPO, one iteration after the other. Everything that happens in one is on this page; how is in the phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai_dist.config.ppo import PpoConfig
from cai_dist.coordinator import rollout_phase, update_phase
from cai_dist.coordinator.prompts import TokenizedPrompt, digest
from cai_dist.coordinator.protocols import Checkpoints, Log, PpoRoles
from cai_dist.coordinator.resume import Keeper
from cai_dist.coordinator.state import PpoState
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
    on_rollout: Callable[[int, tuple[Trajectory, ...]], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
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
        on_rollout: called with (0-based iteration, trajectories) after each rollout phase.
        snapshot: called with the number of finished iterations where `config.snapshot_every` wants the policy kept;
            again for the same number where the run was killed before its next checkpoint.

    Returns: the final state; the trained policy is in `roles`.

    Raises: Interrupted (stopped on request; all is saved), CheckpointError, DataError, StaleEngineError, WorkerError,
        WorkerTimeout.
    """
    keeper = Keeper(checkpoints, roles, {"seed": seed, "prompts": digest(prompts), "algorithm": config.algorithm})
    state = keeper.restore(PpoState.start(config))
    roles.sync_weights(state.weight_version)
    for iteration in state.remaining(config.iterations):
        keeper.stop_if(should_stop(), state, config.iterations)
        rollout = rollout_phase.collect(roles, prompts, config, stop_ids, state, seed)
        if on_rollout is not None:
            on_rollout(iteration, rollout.trajectories)
        update = update_phase.run(roles, rollout.trajectories, config, state, seed)
        state = state.advance(config, rollout.kl_per_response, len(rollout.trajectories), rollout.statistics)
        sync = roles.sync_weights(state.weight_version)
        log(state.iteration, **rollout.metrics, **update, **{f"sync_{name}": number for name, number in sync.items()})
        if snapshot is not None and config.snapshot_due(state.iteration):
            snapshot(state.iteration)  # before the checkpoint: a run that goes on from it would not come by here again
        keeper.save_if_due(state, config.checkpoint_every, config.iterations)
    return state
