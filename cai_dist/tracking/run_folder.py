"""The files and folders of a run. Each path is written here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cai_dist.config.stages import DPO, EVALUATE, EXPAND, FEEDBACK, PPO, PREFERENCE, PREPARE, REVISE, SFT
from cai_dist.types import PromptKind

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of a trained job, inside the job's own."""


@dataclass(frozen=True)
class RunFolder:
    """Where each file and folder of the run in `root` is. Pure: nothing is read, made or looked for."""

    root: Path

    # ---- the run itself

    @property
    def config(self) -> Path:
        """Settings of the run, as they were resolved."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """State, fingerprint and outputs of each stage (`tracking/manifest.py`)."""
        return self.root / "manifest.json"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line (`tracking/metrics.py`)."""
        return self.root / "metrics.jsonl"

    @property
    def lock(self) -> Path:
        """Lock of the process that writes to the run (`tracking/lock.py`)."""
        return self.root / ".lock"

    @property
    def logs(self) -> Path:
        """Tracebacks of failed commands."""
        return self.root / "logs"

    @property
    def wandb(self) -> Path:
        """Folder of wandb."""
        return self.root / "wandb"

    @property
    def evaluation(self) -> Path:
        """Result of stage `evaluate`."""
        return self.root / "evaluation.json"

    @property
    def report(self) -> Path:
        """HTML report."""
        return self.root / "report" / "index.html"

    @property
    def endpoint_answers(self) -> Path:
        """Answers of the server of `feedback.endpoint`."""
        return self.root / "endpoint" / "answers.jsonl"

    # ---- what several stages have

    def stage(self, stage: str) -> Path:
        """Folder of a stage."""
        return self.root / stage

    def aside(self, stage: str, number: int) -> Path:
        """Folder to which an earlier result of a stage was moved, 1-based."""
        return self.root / f"{stage}.old-{number}"

    def model(self, stage: Literal["sft", "preference", "ppo", "dpo"]) -> Path:
        """Model that a stage makes, in the Hugging Face layout."""
        return self.stage(stage) / "model"

    def heldout(self, stage: Literal["preference", "dpo"]) -> Path:
        """Figures of a learned reward on held-out comparisons."""
        return self.stage(stage) / "heldout.json"

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of a stage that is training."""
        return self.stage(stage) / CHECKPOINTS

    def transcripts(self, stage: Literal["expand", "revise", "evaluate"]) -> Path:
        """Transcripts for people, in Markdown."""
        return self.stage(stage) / "transcripts.md"

    # ---- prepare

    @property
    def models(self) -> Path:
        """Models of the run by role: source, path, hash."""
        return self.stage(PREPARE) / "models.json"

    def prompts(self, kind: PromptKind) -> Path:
        """Table of the prompts of a kind, those held out too."""
        return self.stage(PREPARE) / f"{kind}.parquet"

    @property
    def human(self) -> Path:
        """Table of the comparisons of people."""
        return self.stage(PREPARE) / "human.parquet"

    @property
    def ranked(self) -> Path:
        """Table of ranked answers; there where `data.ranked_answers` names a source."""
        return self.stage(PREPARE) / "ranked.parquet"

    @property
    def world_model(self) -> Path:
        """Model of the micro-world, pretrained."""
        return self.stage(PREPARE) / "world-model"

    @property
    def world_initial(self) -> Path:
        """Model of the micro-world before its pretraining."""
        return self.stage(PREPARE) / "world-initial"

    @property
    def world_training(self) -> Path:
        """Scratch folder of the micro-world's pretraining."""
        return self.stage(PREPARE) / "pretrain"

    # ---- expand and revise

    def expanded(self, kind: PromptKind, rl: bool = False) -> Path:
        """Table of the prompts of a kind that stage `expand` made for all stages, or (`rl`) for PPO alone."""
        return self.stage(EXPAND) / f"{'rl_' if rl else ''}{kind}.parquet"

    @property
    def revisions(self) -> Path:
        """Table of answers, critiques and revisions to red-team prompts."""
        return self.stage(REVISE) / "revisions.parquet"

    @property
    def helpful_answers(self) -> Path:
        """Table of answers to helpful prompts."""
        return self.stage(REVISE) / "helpful.parquet"

    # ---- sft, feedback, preference

    @property
    def sl_model(self) -> Path:
        """SL-CAI model."""
        return self.model(SFT)

    @property
    def comparisons(self) -> Path:
        """Table of the AI's comparisons with their labels."""
        return self.stage(FEEDBACK) / "comparisons.parquet"

    @property
    def principles(self) -> Path:
        """Statistics of each principle, and the mean mass of the options."""
        return self.stage(FEEDBACK) / "principles.json"

    @property
    def preference_model(self) -> Path:
        """Preference model; the first one with `preference.halves`."""
        return self.model(PREFERENCE)

    @property
    def second_model(self) -> Path:
        """Preference model of the other half of the comparisons (`preference.halves`), from which PPO has not
        learned."""
        return self.stage(PREFERENCE) / "second" / "model"

    @property
    def pm_pretraining(self) -> Path:
        """Scratch folder of the preference model's pretraining."""
        return self.stage(PREFERENCE) / "pretraining"

    # ---- ppo and dpo

    def snapshot(self, iteration: int) -> Path:
        """Policy of PPO after `iteration` iterations (`ppo.snapshot_every`)."""
        return self.stage(PPO) / "snapshots" / f"iteration-{iteration:05d}"

    @property
    def timeline(self) -> Path:
        """Timeline of PPO's workers (`tracking/timeline.py`)."""
        return self.stage(PPO) / "timeline.json"

    @property
    def placement(self) -> Path:
        """Nodes, GPUs and peak memory of PPO's workers."""
        return self.stage(PPO) / "placement.json"

    def ppo_transcript(self, iteration: int) -> Path:
        """First samples of an iteration of PPO, one JSON object a line."""
        return self.stage(PPO) / "transcripts" / f"iteration-{iteration:05d}.jsonl"

    @property
    def dpo_reference(self) -> Path:
        """Log-probabilities of the training pairs under SL-CAI, in shards."""
        return self.stage(DPO) / "reference"

    @property
    def dpo_reference_heldout(self) -> Path:
        """Log-probabilities of the held-out pairs under SL-CAI, in shards."""
        return self.stage(DPO) / "reference-heldout"

    @property
    def dpo_measured(self) -> Path:
        """Log-probabilities of the held-out pairs under DPO-CAI, in shards."""
        return self.stage(DPO) / "measured"

    # ---- evaluate

    @property
    def ratings(self) -> Path:
        """Folder of the model that rates harmfulness."""
        return self.stage(EVALUATE) / "ratings"

    @property
    def evaluation_transcripts(self) -> Path:
        """Models' answers to held-out prompts side by side, one JSON object a line."""
        return self.stage(EVALUATE) / "transcripts.jsonl"
