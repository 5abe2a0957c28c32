"""What every stage is given: the configuration, the run folder and the services of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_dist.config.preference import DpoConfig, PreferenceConfig
from cai_dist.config.run import RunConfig
from cai_dist.config.supervised import SftConfig
from cai_dist.config.threads import cpus_for_threads
from cai_dist.config.training import LoraConfig
from cai_dist.constitution import Constitution
from cai_dist.errors import Interrupted
from cai_dist.registry import source_notes
from cai_dist.tracking.atomic import write_json
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker
from cai_dist.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from cai_dist.cluster.runtime import Cluster


@dataclass
class RunContext:
    """One run in progress. Ray starts when a stage first asks for workers, so that a finished run answers at once."""

    config: RunConfig
    run_dir: Path
    manifest: Manifest
    tracker: Tracker
    console: Console
    constitution: Constitution
    should_stop: Callable[[], bool]
    on_cluster_start: Callable[[], None] = lambda: None
    """Called after Ray is up (Ray replaces signal handlers)."""
    cpus: int = field(default_factory=cpus_for_threads)
    """CPUs of this machine that workers may share (`cluster.threads: auto`)."""
    _cluster: Cluster | None = field(default=None, repr=False)

    @property
    def constitution_note(self) -> dict[str, Any]:
        """Name, version and hash of the run's constitution, for what is made under it (`Constitution.note`)."""
        return self.constitution.note(self.config.without_principles)

    @property
    def paths(self) -> RunFolder:
        """Where each file of the run is."""
        return RunFolder(self.run_dir)

    def folder(self, stage: str) -> Path:
        """The folder of a stage, made if needed."""
        path = self.paths.stage(stage)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def cluster(self) -> Cluster:
        """The Ray cluster of this run."""
        if self._cluster is None:
            from cai_dist.cluster.placement import needed_cpus
            from cai_dist.cluster.runtime import Cluster

            forks = self.config.engine.backend != "vllm"
            cluster = Cluster(self.config.cluster, needed_cpus(self.config), forks)
            cluster.__enter__()
            self._cluster = cluster
            self.on_cluster_start()
        return self._cluster

    def close(self) -> None:
        """Stop the workers and, where it is ours, the cluster."""
        if self._cluster is not None:
            self._cluster.__exit__(None, None, None)
            self._cluster = None

    def check_stop(self) -> None:
        """Raise `Interrupted` where the user or the scheduler has asked to stop. Call it where everything is saved."""
        if self.should_stop():
            raise Interrupted("stopped on request; everything so far is saved, the same command goes on from here")

    def write_result(self, path: Path, result: Mapping[str, Any]) -> None:
        """Write a stage's figures as JSON, with the constitution that they were found under as `constitution`."""
        write_json(path, {**result, "constitution": self.constitution_note})

    def log(self, stage: str, step: int, **numbers: float) -> None:
        """One line of metrics.jsonl (and of wandb)."""
        self.tracker.log(stage, step, **numbers)


def model_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that affect the result of every stage that runs a model; engines draw their samples each in its own
    way."""
    models = config.models.model_dump(mode="json", include={"chat", "context", "dtype", "head_dtype"})
    own = source_notes({"engine.backend": config.engine.backend, "engine.training": config.engine.training})
    engines = {"engines": own["strategies"]} if own else {}
    return models | chat_settings(config) | {"engine": config.engine.backend} | engines


def unset(section: SftConfig | PreferenceConfig | DpoConfig) -> dict[str, Any]:
    """What `model_dump` leaves out of a stage's settings because it is not set: runs that were begun before there was
    such a setting go on."""
    return {"lora": True} if section.lora is None else unset_of_lora(section.lora)


def unset_of_lora(lora: LoraConfig | None) -> dict[str, Any]:
    """What `model_dump` leaves out of adapters' settings, as `unset` does."""
    return {"lora": {"quantization"}} if lora is not None and lora.quantization == "none" else {}


CHAT_KEYS = frozenset({"chat_arguments", "chat_date"})
"""Keys of `models` that chat templates are told."""


def chat_settings(config: RunConfig) -> dict[str, Any]:
    """What chat templates are told, as far as it is set: runs that were begun without such settings go on."""
    return config.models.model_dump(mode="json", include=set(CHAT_KEYS), exclude_defaults=True)


Records = list[dict[str, Any]]
