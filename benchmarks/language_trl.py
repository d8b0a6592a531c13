"""TRL's side of the language benchmark: GRPO, RLOO and DPO trainers on the work of language_work.py.

Runs in the environment build/trl, started by run.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from language_work import ACCUMULATION, DPO_BETA, GRPO, MAX_GRAD_NORM, PAIRED, REWARDS, RLOO_BETA, WORK, Case, read_rows
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from turns import Side


class Batch:
    """What the last step was made of."""

    def __init__(self, reward: Callable[..., list[float]]) -> None:
        self.reward = reward
        self.completions: list[list[int]] = []
        self.prompts: list[str] = []
        self.texts: list[str] = []
        self.targets: list[str] = []
        self.scores: list[float] = []
        self.tokens = 0

    def scored(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], target: list[str], **_: Any
    ) -> list[float]:
        """The reward; remembers what it saw."""
        self.prompts, self.texts, self.targets, self.completions = prompts, completions, target, completion_ids
        self.tokens = sum(map(len, completion_ids))
        self.scores = self.reward(completions=completions, target=target)
        return self.scores


class Steps(TrainerCallback):  # type: ignore[misc]
    """Ends a step of the benchmark where the trainer ends one of its own."""

    def __init__(self, side: Side, batch: Batch):
        self.side, self.batch = side, batch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the first turn."""
        self.side.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One optimizer step was taken."""
        scores = self.batch.scores
        self.side.step(tokens=self.batch.tokens, updates=1, reward=sum(scores) / len(scores) if scores else None)
        self.batch.tokens = 0  # those of pairs are counted part by part


def make_trainer(case: Case, model: str, rows: Path, batch: Batch, *, seed: int, steps: int, side: str) -> Any:
    """A trainer of the case; "trl-defaults" leaves precision and checkpointing as TRL has them."""
    size = case.shape
    parts = ACCUMULATION if side == "trl-tuned" else 1
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "learning_rate": case.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "logging_steps": 1,  # polyrl logs every iteration
        "save_strategy": "no",
        "gradient_accumulation_steps": parts,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seed,
        "model_init_kwargs": {"dtype": "float32"},  # master weights; bf16 below is autocast
    }
    if side != "trl-defaults":
        common |= {"bf16": case.precision == "bfloat16", "gradient_checkpointing": False}
    dataset = Dataset.from_list(read_rows(rows))
    tokenizer = AutoTokenizer.from_pretrained(model)
    adapters = LoraConfig(r=case.lora, lora_alpha=32, target_modules="all-linear") if case.lora else None
    if case.method in PAIRED:
        common["per_device_train_batch_size"] = size.prompts * size.group // 2 // parts
    if case.method == "reward-model":
        settings = RewardConfig(**common)
        return RewardTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)
    if case.method == "dpo":
        settings = DPOConfig(beta=DPO_BETA, **common)
        return DPOTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)
    common |= {
        "per_device_train_batch_size": size.prompts * size.group // parts,
        "num_generations": size.group,
        "max_completion_length": size.length,
    }
    if case.method == "grpo":
        settings = GRPOConfig(loss_type="dapo", scale_rewards="group", beta=0.0, epsilon=GRPO["clip"], **common)
        kind = GRPOTrainer
    else:
        settings, kind = RLOOConfig(beta=RLOO_BETA, **common), RLOOTrainer
    shared = {"args": settings, "train_dataset": dataset, "processing_class": tokenizer, "peft_config": adapters}
    return kind(model, reward_funcs=batch.scored, **shared)


def watch(trainer: Any, side: Side, batch: Batch, method: str) -> None:
    """Time the trainer's parts."""
    wrap = side.clock.wrap
    wrap(trainer.accelerator, "backward", "loss and backward")
    if method in PAIRED:
        wrap(trainer, "compute_loss", "loss and backward")
        if method == "dpo":
            wrap(trainer.ref_model, "forward", "log-probabilities")
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            made = collate(examples)
            batch.tokens += int(made["completion_mask"].sum()) if method == "dpo" else answered(made)
            return made

        prompt_end = trainer.processing_class.convert_tokens_to_ids("=")

        def answered(made: Any) -> int:
            """Tokens behind the prompts, which end in `=`."""
            behind = (made["input_ids"] == prompt_end).cumsum(1) > 0
            return int((behind & made["attention_mask"].bool()).sum()) - len(behind)

        trainer.data_collator = counted
    else:
        wrap(trainer, "_generate", "generation")
        wrap(trainer, "_calculate_rewards", "scoring")
        wrap(trainer, "_get_per_token_logps_and_entropies", "log-probabilities")
        wrap(trainer, "compute_loss", "loss and backward", whole=True)


def main() -> None:
    """Take turns; or, with --record, take one step and write down what it saw and came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(WORK))
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--as", dest="side", default="trl", help="which of the peers of language_work.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    case = WORK[given.case]
    torch.set_num_threads(1)
    set_seed(given.seed)
    batch = Batch(REWARDS[case.reward])
    steps = 1 if given.record else 1_000_000
    trainer = make_trainer(case, given.model, given.rows, batch, seed=given.seed, steps=steps, side=given.side)
    if given.record:
        trainer.train()
        first = trainer.state.log_history[0]
        record = {
            "prompts": batch.prompts,
            "completions": batch.completions,
            "texts": batch.texts,
            "targets": batch.targets,
            "loss": first["loss"],
            "grad_norm": first["grad_norm"],
        }
        given.record.write_text(json.dumps(record), encoding="utf-8")
        return
    side = Side()
    watch(trainer, side, batch, case.method)
    trainer.add_callback(Steps(side, batch))
    trainer.train()


if __name__ == "__main__":
    main()
