"""The language wing's world: a task, a Hugging Face policy and what stands beside it (reference, critic, rewards)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.experience import Experience
from polyrl.policies.folders import LoraSettings
from polyrl.policies.language import LanguagePolicy, Precision
from polyrl.policies.rows import micro_batches
from polyrl.policies.scalar import Critic
from polyrl.runtime.seeding import generator
from polyrl.sampling.language import Engine, Sampling, TransformersEngine
from polyrl.tasks.language import LanguageTask, Row
from polyrl.tasks.language.base import table_rows
from polyrl.tasks.language.reward_runner import RewardRunner, Scores
from polyrl.tasks.language.rewards import check_signature

EVALUATION_SEED = 1234
"""Every method and seed is judged on the same prompts."""


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged, apart from training: the same prompts of the test split each time.

    Attributes:
        prompts: how many.
        greedy: argmax decoding; otherwise one sampled response each (temperature 1), with the same random numbers
            at every evaluation.
        shown: how many responses are kept in samples.jsonl.
    """

    prompts: int = 200
    greedy: bool = True
    shown: int = 8
    seed: int = EVALUATION_SEED


def _several(scores: Scores) -> dict[str, Tensor]:
    """What each reward function gave, `[B]`; nothing where there is one alone, which would only repeat the total."""
    if len(scores.parts) < 2:
        return {}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.parts.items()}


class LanguageWorld:
    """Implements `polyrl.runtime.context.World` for tokens."""

    def __init__(
        self,
        task: LanguageTask,
        model: str | Path,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "float32",
        lora: LoraSettings | None = None,
        evaluation: Evaluation | None = None,
        on_reward_error: Literal["stop", "drop", "zero"] = "stop",
        reward_timeout: float | None = 60.0,
        micro_batch_tokens: int = 2048,
        critic: bool = False,
    ):
        if micro_batch_tokens < 1:
            raise UserError(f"micro_batch_tokens must be at least 1, not {micro_batch_tokens}.")
        self.task, self.model_name, self.seed = task, str(model), seed
        self.device, self.precision = device, precision
        self.micro_batch_tokens = micro_batch_tokens
        self.evaluation = evaluation or Evaluation()
        self.lora = lora
        self.policy = LanguagePolicy.load(model, device=device, precision=precision, lora=lora)
        self.critic = Critic.like(self.policy) if critic else None
        self.engine: Engine = TransformersEngine(self.policy)
        self.rewards = RewardRunner(task.rewards, on_error=on_reward_error, timeout=reward_timeout)

    # ------------------------------------------------------------------------------------------ collect and score

    def sample(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        *,
        completions_per_prompt: int,
        generator: torch.Generator,
        greedy_twin: bool = False,
    ) -> Experience:
        """Answer each row's prompt; the row's columns are repeated for each of its responses."""
        batch = self.engine.generate(
            [self.policy.encode_prompt(row["prompt"]) for row in rows],
            sampling,
            completions_per_prompt=completions_per_prompt,
            generator=generator,
            greedy_twin=greedy_twin,
            tools=self.task.tool,
        )
        names = list(rows[0])
        columns = {name: [rows[g].get(name) for g in batch["group"].tolist()] for name in names}
        # experience lives in main memory; models take to their device what they read, micro-batch by micro-batch
        batch = Experience(batch.data.to("cpu"), batch.columns)
        batch = batch.with_fields(length_limit=torch.full((len(batch),), sampling.max_tokens))
        return batch.with_columns(**columns)

    def check_rows(self, rows: Sequence[Row], max_tokens: int) -> None:
        """Find what is wrong with prompts and rewards before a run begins.

        Raises:
            UserError: a prompt that cannot be encoded or leaves no room for `max_tokens`, or a reward that needs a
                column that the rows do not have.
        """
        columns = [name for name in rows[0] if name != "prompt"]
        for reward in self.task.rewards:
            check_signature(reward.name, reward.function, columns)
            if reward.function.__module__ == check_signature.__module__:  # ours say by themselves what they miss
                reward.function(prompts=[], completions=[], **{name: [] for name in columns})
        self.engine.check([self.policy.encode_prompt(row["prompt"]) for row in rows], max_tokens)

    def _scores(self, experience: Experience) -> Scores:
        columns = dict(experience.columns)
        prompts, completions = columns.pop("prompt"), columns.pop("completion")
        return self.rewards(prompts, completions, **columns)

    def score(self, experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        """Scores `[B]` (NaN: dropped), the parts of each reward function `[B]`, and how many samples were scored."""
        scores = self._scores(experience)
        return torch.tensor(scores.total, dtype=torch.float32), _several(scores), scores.calls

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        """What the task measures beside the reward, float32 `[B]` each: to be logged, never trained on."""
        columns = dict(experience.columns)
        prompts, completions = columns.pop("prompt"), columns.pop("completion")
        rows = table_rows(prompts, columns)
        found = [self.task.measures(row, text) for row, text in zip(rows, completions, strict=True)]
        return {name: torch.tensor([f[name] for f in found], dtype=torch.float32) for name in found[0]}

    # ------------------------------------------------------------------------------------------- forward passes

    def micro_batches(self, experience: Experience) -> list[Tensor]:
        """Row indices of similar length with at most `micro_batch_tokens` padded tokens."""
        lengths = experience["prompt_mask"].sum(1) + experience["present"].sum(1)
        return micro_batches(lengths, self.micro_batch_tokens)

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "logprob", "entropy" and "value" `[B, T]`, those that are wanted."""
        found: dict[str, Tensor] = {}
        policy_wants = set(wants) & {"logprob", "entropy"}
        if policy_wants:
            found.update(self.policy.evaluate(experience, want=policy_wants))
        if "value" in wants:
            found["value"] = self._need_critic().evaluate(experience)
        return {name: tensor.cpu() for name, tensor in found.items()}

    @torch.no_grad()
    def reference_logprob(self, experience: Experience) -> Tensor:
        """Log-probability of the actions under the starting policy, `[B, T]`."""
        if self.lora is not None:
            with self.policy.model.disable_adapter():
                return self._measured(experience, lambda rows: self.policy.evaluate(rows)["logprob"])
        return self._measured(experience, lambda rows: self.reference.evaluate(rows)["logprob"])

    @torch.no_grad()
    def value(self, experience: Experience) -> Tensor:
        """Critic's value of the state before each step, `[B, T]`."""
        return self._measured(experience, self._need_critic().evaluate)

    def _measured(self, experience: Experience, forward: Any) -> Tensor:
        """`forward` on every row that may train; greedy twins never do, and stay 0."""
        result = torch.zeros(experience["mask"].shape)
        trained = (~experience["greedy"]).nonzero()[:, 0]
        for index in self.micro_batches(experience.rows(trained)):
            rows = trained[index]
            result[rows] = forward(experience.rows(rows)).float().cpu()
        return result

    @cached_property
    def reference(self) -> LanguagePolicy:
        """The frozen starting policy."""
        policy = LanguagePolicy.load(self.model_name, device=self.device, precision=self.precision)
        policy.requires_grad_(False)
        return policy

    def _need_critic(self) -> Critic:
        if self.critic is None:
            raise RuntimeError("this world was made without a critic")
        return self.critic

    # ----------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Accuracy, reward and length on the fixed test prompts, and the first few responses."""
        how = self.evaluation
        size = self.task.size("test")  # no prompt of a small test set is counted twice
        rows = self.task.rows("test", how.seed, 0, how.prompts if size is None else min(how.prompts, size))
        sampling = Sampling(max_tokens=self.task.max_tokens, stop=tuple(self.task.stop), greedy=how.greedy)
        stream = generator(how.seed, "evaluation")
        batch = self.sample(rows, sampling, completions_per_prompt=1, generator=stream)
        texts = batch.columns["completion"]
        scored = self._scores(batch)
        scores, parts = torch.tensor(scored.total, dtype=torch.float32), _several(scored)
        earned = [dict(zip(scored.parts, values, strict=True)) for values in zip(*scored.parts.values(), strict=True)]
        right = [self.task.judged(row, text, e) for row, text, e in zip(rows, texts, earned, strict=True)]
        kept = ~torch.isnan(scores)
        metrics = {
            "eval/accuracy": sum(right) / len(right),
            "eval/reward": float(scores[kept].mean()) if bool(kept.any()) else 0.0,
            "eval/mean_length": float(batch["present"].sum(1).float().mean()),
        }
        for name, values in parts.items():
            known = values[~torch.isnan(values)]
            if len(known):
                metrics[f"eval/rewards/{name}"] = float(known.mean())
        metrics |= {f"eval/{name}": float(values.mean()) for name, values in self.measures(batch).items()}
        samples = [
            {
                "split": "test",
                "prompt": rows[i]["prompt"],
                "completion": texts[i],
                "score": float(scores[i]),
                "correct": bool(right[i]),
                "expected": self.task.expected(rows[i]),
            }
            for i in range(min(how.shown, len(rows)))
        ]
        return metrics, samples

    # -------------------------------------------------------------------------------------------------- folders

    def parameters(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Trained parameters by model: "policy", and "critic" if there is one."""
        models: dict[str, torch.nn.Module] = {"policy": self.policy}
        if self.critic is not None:
            models["critic"] = self.critic
        return {m: [(n, p) for n, p in module.named_parameters() if p.requires_grad] for m, module in models.items()}

    def save(self, folder: Path) -> None:
        """Write `policy/` (an ordinary model or adapter folder) and `critic/`."""
        self.policy.save(folder / "policy")
        if self.critic is not None:
            self.critic.save(folder / "critic")

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place."""
        from safetensors.torch import load_file

        try:
            if self.lora is None:
                self.policy.load_state_dict(LanguagePolicy.load(folder / "policy").state_dict())
            else:
                from peft import set_peft_model_state_dict

                set_peft_model_state_dict(self.policy.model, load_file(folder / "policy" / "adapter_model.safetensors"))
            if self.critic is not None:
                self.critic.load_state_dict(Critic.load(folder / "critic").state_dict())
        except (OSError, RuntimeError):  # other names or shapes
            raise UserError(f"The checkpoint {folder} does not hold the models of this run.") from None

    def export(self, folder: Path) -> None:
        """Write the trained policy as an ordinary model folder that transformers loads (adapters merged)."""
        self.policy.save(folder, merge=True)
