"""polyrl's side of the language benchmark: a whole run of the loop, watched from its progress display.

Started by run.py. What a step costs is all that lies between two calls of the progress display: the five stages, the
records in the run folder, the health checks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from language_work import DPO_BETA, GRPO, MAX_GRAD_NORM, PAIRED, PPO, RLOO_BETA, WORK, Case, Size
from turns import Side

from polyrl.core.experience import Experience
from polyrl.core.loop import Loop
from polyrl.models.language.rows import as_experience
from polyrl.runs import start_run
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import Progress

HERE = Path(__file__).resolve().parent


def hyperparameters(case: Case, size: Size) -> dict[str, Any]:
    """The case in polyrl's words."""
    shared = {"learning_rate": case.learning_rate, "max_grad_norm": MAX_GRAD_NORM}
    sampled = {"prompts_per_step": size.prompts, "completions_per_prompt": size.group, **shared}
    if case.method == "grpo":
        own = {"clip_range": GRPO["clip"], "group_epsilon": GRPO["group_epsilon"], "aggregation": "token-mean"}
        return {**sampled, **own, "minibatches": 1}
    if case.method == "rloo":
        return {**sampled, "kl_coef": RLOO_BETA}
    if case.method == "reward-model":
        half = size.prompts * size.group // 2
        return {**shared, "pairs_per_step": half, "warmup": 0, "schedule": "constant"}
    if case.method == "dpo":
        pairs = size.prompts * size.group // 2
        return {**shared, "pairs_per_step": pairs, "beta": DPO_BETA, "warmup": 0, "schedule": "constant"}
    own = {"clip_range" if name == "clip" else name: value for name, value in PPO.items()}
    one_each = {"prompts_per_step": size.prompts * size.group, "completions_per_prompt": 1}
    return {**shared, **one_each, **own, "critic_learning_rate": case.learning_rate}


def config(case: Case, model: str, folder: Path, seed: int, **changes: int) -> RunConfig:
    """An ordinary run, with no evaluation, checkpoint or TensorBoard file on the way, as the peer has none."""
    known = {**hyperparameters(case, case.shape), **changes}
    settings = {name: str(value) for name, value in known.items()}
    return RunConfig(
        method=case.method,
        task="dataset",
        dataset=str(folder / "train.jsonl"),
        test_dataset=str(folder / "test.jsonl"),
        rewards=() if case.method in PAIRED else (f"{HERE / 'language_work.py'}:{case.reward}",),
        model=model,
        seed=seed,
        budget="updates=1000000000",
        hyperparameters=settings,
        max_tokens=None if case.method == "reward-model" else case.shape.length,
        lora=case.lora or None,
        precision="bfloat16" if case.precision == "bfloat16" else "float32",
        threads=1,
        eval_prompts=1,
        evaluations=1,
        checkpoint_every=1_000_000_000,
        monitor_kl_every=5
        if case.method == "reward-model"
        else 0,  # a forward pass of the reference that the peer does not make either
        tensorboard=False,
    )


class Steps(Progress):
    """Ends a step of the benchmark where the loop shows an iteration."""

    def __init__(self, side: Side):
        super().__init__("benchmark", "", quiet=True)
        self.side = side
        self.before = {"samples": 0, "updates": 0}

    def update(self, record: dict[str, Any], share: float) -> None:
        """An iteration has ended; number 0 is the evaluation before training."""
        if record["iteration"] == 0:
            self.side.begin()
            return
        new = {name: record[name] - before for name, before in self.before.items()}
        self.before = {name: record[name] for name in self.before}
        tokens = round(new["samples"] * record["completions/mean_length"])
        self.side.step(tokens=tokens, updates=new["updates"], reward=record.get("reward"))


def watch(loop: Loop, side: Side) -> None:
    """Time the loop's parts: sampling, rewards, forward passes that only measure, the update without AdamW's step."""
    names = {"score": "scoring"} if loop.recipe.name in PAIRED else {"collect": "generation", "score": "scoring"}
    watched = set()
    for stage, parts in loop.recipe.stages():
        for part in parts:
            name = "log-probabilities" if part.measures and part.required_models() else names.get(stage)
            if name and type(part) not in watched:
                watched.add(type(part))
                side.clock.wrap(type(part), "__call__", name)
    side.clock.wrap(type(loop.recipe.optimize), "run", "loss and backward")
    for optimizer in loop.context.optimizer.values():
        side.clock.wrap(optimizer, "step", "everything else")


def replayed(loop: Loop, record: dict[str, Any]) -> Any:
    """A stand-in for `run_state.sample` that returns the completions of a peer instead of sampling some."""
    run_state: Any = loop.run_state
    tokenizer = run_state.policy.tokenizer
    prompts = [run_state.policy.encode_prompt(prompt) for prompt in record["prompts"]]
    batch = as_experience(prompts, record["completions"], pad_id=run_state.policy.pad_id)
    group = {prompt: i for i, prompt in enumerate(dict.fromkeys(record["prompts"]))}
    ended = [ids[-1] == tokenizer.eos_token_id for ids in record["completions"]]
    with torch.no_grad():
        logprob = run_state.policy.evaluate(batch)["logprob"]
    batch = batch.with_fields(
        behaviour_logprob=logprob,
        ended=torch.tensor(ended),
        greedy=torch.zeros(len(batch), dtype=torch.bool),
        group=torch.tensor([group[prompt] for prompt in record["prompts"]]),
        length_limit=torch.full((len(batch),), run_state.task.max_tokens),
    ).with_columns(prompt=record["prompts"], completion=record["texts"])
    batch = batch.answering(
        [{"prompt": p, "target": t} for p, t in zip(record["prompts"], record["targets"], strict=True)]
    )

    def sample(*_: Any, **__: Any) -> Experience:
        return batch

    return sample


def main() -> None:
    """Take turns; or, with --replay, take one step on what a peer saw and print loss and gradient norm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(WORK))
    parser.add_argument("model")
    parser.add_argument("rows", type=Path, help="train.jsonl, beside test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    case = WORK[given.case]
    if given.replay:
        whole = {"epochs": 1, "minibatches": 1}
        loop = start_run(config(case, given.model, given.rows.parent, 0, **whole), given.out, overwrite=True)
        record = json.loads(given.replay.read_text(encoding="utf-8"))
        if record["completions"]:  # of fixed pairs both sides take all that there are
            loop.run_state.sample = replayed(loop, record)  # type: ignore[attr-defined]
        loop.iterate()
        found = {name: value for name, value in loop.context.metrics.items() if name.startswith(("loss", "grad_norm/"))}
        print(json.dumps(found))
        return
    side = Side()
    question = config(case, given.model, given.rows.parent, given.seed)
    loop = start_run(question, given.out, progress=Steps(side), overwrite=True)
    watch(loop, side)
    loop.run()


if __name__ == "__main__":
    main()
