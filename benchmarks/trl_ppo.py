"""One run of TRL's PPOTrainer on prepared token ids; `ppo_step.py` starts it with the interpreter of TRL's environment:

    python3.11 -m venv .venv-trl
    .venv-trl/bin/pip install torch==2.13.0
    .venv-trl/bin/pip install trl==0.24.0 transformers==4.57.6 torch==2.13.0

Needs nothing of cai_dist. Reads a task file (JSON, written by `ppo_step.py`), prints one JSON line with the seconds of
each iteration; the first one, in which allocators and caches warm up, is for the caller to drop.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path


def main(task_file: str) -> None:
    """Run the task in `task_file`."""
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(task["threads"])
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import PPOConfig, PPOTrainer

    # AutoTokenizer would look for the tokenizer class of a newer transformers.
    special = json.loads((Path(task["model"]) / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(task["model"]) / "tokenizer.json"), eos_token=special["eos_token"], padding_side="left"
    )
    # A padding token of its own, inside the vocabulary: TRL finds the end of a response by it.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(task["pad_id"])

    def scalar() -> AutoModelForSequenceClassification:
        return AutoModelForSequenceClassification.from_pretrained(task["reward"], num_labels=1, dtype=torch.float32)

    def causal() -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            ends.append(time.perf_counter())

    samples = task["samples"]
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            num_sample_generations=0,
            seed=task["seed"],
            total_episodes=samples * task["iterations"],
            per_device_train_batch_size=task["micro_batch"],
            gradient_accumulation_steps=samples // task["micro_batch"],
            num_mini_batches=1,
            num_ppo_epochs=task["epochs"],
            local_rollout_forward_batch_size=samples,
            response_length=task["response_tokens"],
            temperature=task["temperature"],
            stop_token="eos",
            kl_coef=task["kl"],
            learning_rate=task["lr"],
            max_grad_norm=1.0,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=causal(),
            ref_model=causal(),
            reward_model=scalar(),
            value_model=scalar(),
            train_dataset=Dataset.from_dict({"input_ids": task["prompts"]}),
            eval_dataset=Dataset.from_dict({"input_ids": task["prompts"]}),
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
