"""Whether what a run names by `package.module:object` is there and fits, before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from cai_dist.config.algorithms import defaults_of
from cai_dist.config.run import RunConfig
from cai_dist.data.sources import check_rows
from cai_dist.errors import ConfigError
from cai_dist.registry import is_path


def check_strategies(config: RunConfig) -> None:
    """Import every strategy of one's own that the run will use. Raises ConfigError, one line for each that is not
    there or does not fit. Without one nothing is imported."""
    problems = []
    for check in _checks(config):
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _checks(config: RunConfig) -> Iterator[Callable[[], object]]:
    ppo, engine = config.ppo, config.engine
    if is_path(engine.backend) or is_path(engine.training):
        from cai_dist.engines.factory import ROLLOUT, TRAINING

        if is_path(engine.backend):
            yield lambda: ROLLOUT.resolve(engine.backend)
        if is_path(engine.training):
            yield lambda: TRAINING.resolve(engine.training)
    for name in ("red_team", "helpful", "helpful_comparisons", "ranked_answers", "harm_ratings"):
        source = getattr(config.data, name).source
        yield partial(check_rows, source, f"data.{name}.source")
    if (model := config.feedback.model) is not None:
        from cai_dist.stages.ai_feedback.own_model import own_model

        yield lambda: own_model(model)
    if config.own_stages:
        from cai_dist.stages.own_stage import find_work

        yield from (partial(find_work, stage) for stage in config.own_stages)
    if "ppo" not in config.stages:
        return
    if is_path(ppo.algorithm):
        yield lambda: defaults_of(ppo.algorithm)
    if is_path(ppo.schedule):
        from cai_dist.coordinator.schedules import SCHEDULES

        yield lambda: SCHEDULES.resolve(ppo.schedule)
    if is_path(ppo.transfer):
        from cai_dist.cluster.ppo.weight_transfer import find_send

        yield lambda: find_send(ppo.transfer)
    if (talk := ppo.environment) is not None:
        from cai_dist.experience.environments import find_environment

        yield lambda: find_environment(talk)
    if any(term.own for term in ppo.rewards):
        from cai_dist.experience.reward_terms import OwnTerm

        yield from (partial(OwnTerm, term) for term in ppo.rewards if term.own)
