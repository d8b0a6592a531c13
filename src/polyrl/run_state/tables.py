"""Runs on tasks whose answers are tables: what such a policy is judged by, exactly, and what cannot be asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.pairs import sequence_logprob
from polyrl.models.language.tables import TablePolicy

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.run_state.language_run_state import LanguageRunState
    from polyrl.runtime.config import RunConfig
    from polyrl.tasks.language import LanguageTask


def check_tables(config: RunConfig, task: LanguageTask, recipe: Recipe) -> None:
    """Refuse what needs a network.

    Raises:
        UserError: another model, adapters or other rewards are asked for, or the method trains a critic or a reward
            model.
    """
    for option, asked in (("--model", config.model), ("--lora", config.lora)):
        if asked:
            raise UserError(f"The task {task.name} has a policy of its own, a table; leave {option} away.")
    own = {"critic": "a critic", "reward-model": "a reward model"}
    needed = {*recipe.required_models(), *(entry.name.removeprefix("starting-") for entry in recipe.models.values())}
    for model, words in own.items():
        if model in needed:
            raise UserError(
                f"{recipe.name} trains {words}, a network, and the policy of the task {task.name} is a table; take a "
                "task of text, such as sort-pairs, or a method without one."
            )


@torch.no_grad()
def judged_exactly(run_state: LanguageRunState) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the policy that is judged, computed over all answers, and its likeliest answers of one step.

    "eval/gold", its expectation; "eval/kl" to the start, nats; "eval/root_kl", its root; "eval/gold_at_kl", the most
    gold that any policy has at that KL; "eval/best_gold", that of the best answer; "eval/off_data", the probability of
    answers that no data hold; and over the training pairs "eval/chosen_logprob" and "eval/rejected_logprob", nats.
    """
    policy = run_state.policy
    assert isinstance(policy, TablePolicy)
    tables, table = policy.tables, policy.table()
    found = tables.measures(table)
    metrics = {f"eval/{name}": value for name, value in found.items()}
    metrics |= {"eval/root_kl": found["kl"] ** 0.5, "eval/best_gold": tables.best}
    if run_state.task.fixed_pairs:
        pairs = run_state.pairs("train")
        batch: Experience = pairs.batch(range(len(pairs)))
        total = sequence_logprob(policy.evaluate(batch)["logprob"], batch["mask"])
        for side, rows in (("chosen", batch["preferred"]), ("rejected", ~batch["preferred"])):
            metrics[f"eval/{side}_logprob"] = float(total[rows].mean())
    prompt = run_state.task.rows("test", 0, 0, 1)[0]["prompt"]
    order = table[0].argsort(descending=True)[: run_state.evaluation.shown].tolist()
    samples = [
        {
            "split": "test",
            "prompt": prompt,
            "completion": tables.text([i]),
            "probability": float(table[0, i].exp()),
            "score": float(tables.gold[0, i]),
            "correct": bool(tables.gold[0, i] >= tables.best),
            "expected": None,
        }
        for i in order
    ]
    return metrics, samples
