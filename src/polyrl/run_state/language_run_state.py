"""The state of a language run: a task, a Hugging Face policy, and its reference, critic and rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import sampled_steps, scored_rows
from polyrl.errors import UserError
from polyrl.models.language import last_layer
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.frozen import load_frozen
from polyrl.models.language.named import LanguageModels, stored_policy, trained
from polyrl.models.language.policy import Backbone, LanguagePolicy, Precision
from polyrl.models.language.prefix import SharedPrompts
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import Critic
from polyrl.models.language.tables import load_policy
from polyrl.models.stored import Stored, StoredFile, StoredFolder
from polyrl.rollout.continuations import go_on, states_of
from polyrl.rollout.engines import engine_of
from polyrl.rollout.language import Engine, Sampling, TransformersEngine
from polyrl.run_state.language_evaluation import Evaluation, evaluate, seen_rows
from polyrl.run_state.language_rewards import RewardedRunState
from polyrl.runtime.files import fingerprint
from polyrl.runtime.memory import keep_freed_memory
from polyrl.runtime.ranks import present
from polyrl.tasks.language import LanguageTask, Row
from polyrl.tasks.language.base import replayed, reports, sessions
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.columns import told_columns
from polyrl.tasks.language.rewards import check_signature

if TYPE_CHECKING:
    from polyrl.models.base import Model
    from polyrl.recipe import OwnModel, Term

CHECKED_ROWS = 64
"""Prompts of each split that are looked at before a run begins: later ones are checked when they are drawn."""

READ = frozenset({"prompt_ids", "prompt_mask", "action", "present", "mask", "temperature"})
"""Fields that a model's forward passes need."""


class LanguageRunState(RewardedRunState):
    """A language task, the policy that answers it, and its reference, critic and rewards."""

    models: LanguageModels | None = None
    keeps_reference = True
    """Whether the reference stays in memory; false where nothing is trained with it."""

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
        calls: CallPolicy | None = None,
        micro_batch_tokens: int = 1024,
        monitor_kl_every: int = 5,
        critic: bool | str = False,
        pair_terms: Sequence[Term] = (),
        reference: str | None = None,
        servers: Sequence[str] = (),
    ):
        if micro_batch_tokens < 1:
            raise UserError(f"micro_batch_tokens must be at least 1, not {micro_batch_tokens}.")
        if str(device) == "cpu":
            keep_freed_memory()
        super().__init__(task, calls or CallPolicy(seed=seed))
        self.model_name, self.seed = str(model), seed
        self.reference_name = reference or str(model)
        self.device, self.precision = device, precision
        self.micro_batch_tokens = micro_batch_tokens
        self.monitor_kl_every = monitor_kl_every
        self.evaluation = evaluation or Evaluation()
        self.lora = lora
        self.policy = load_policy(model, device=device, precision=precision, lora=lora)
        self.critic = self._first_critic(critic) if critic else None
        self.servers = tuple(servers)
        self.engine: Engine = engine_of(self.policy, self.servers)
        self._frozen: dict[str, LanguagePolicy] = {}
        self.own: dict[str, OwnModel] = {}  # filled once the models that are given are there
        self.pair_terms = tuple(pair_terms)
        self._judged = ""
        self._moved: frozenset[str] = frozenset()

    def take_models(self, entries: Mapping[str, Model], acts: str, judged: str, moved: frozenset[str]) -> None:
        """Make the models that a recipe names, of the one that it starts from.

        Args:
            entries: what the recipe says of each.
            acts, judged: names of the one that answers prompts in training and of the one in evaluation.
            moved: names of those that moves change.

        Raises:
            UserError: one is not of language, or cannot act.
        """
        models = LanguageModels(
            entries, self.policy, acts=acts, micro_batch_tokens=self.micro_batch_tokens, lora=self.lora
        )
        self.models, self._judged, self._moved = models, judged, moved
        models.policy(judged)
        self._act_by(models.policy(acts))

    def _act_by(self, policy: LanguagePolicy) -> None:
        if policy is not self.policy:
            self.policy, self.engine = policy, engine_of(policy, self.servers)

    # ------------------------------------------------------------------------------------------ collect and score

    def sample(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        *,
        completions_per_prompt: int,
        generator: torch.Generator,
        greedy_baseline: bool = False,
    ) -> Experience:
        """Answer each row's prompt; every response keeps the row that it answers (`Experience.task_rows`).

        Columns: `prompt`, `completion` and what sessions of a tool report.
        """
        tools = sessions(self.task, rows, completions_per_prompt + int(greedy_baseline))
        prompts = [self.policy.encode_row(row) for row in rows]
        present().check_same({"prompts": torch.tensor([token for prompt in prompts for token in (*prompt, -1)])})
        batch = self.engine.generate(
            prompts,
            sampling,
            completions_per_prompt=completions_per_prompt,
            generator=generator,
            greedy_baseline=greedy_baseline,
            tools=tools,
        )
        answered = [rows[g] for g in batch["group"].tolist()]
        # experience lives in main memory; models take to their device what they read, micro-batch by micro-batch
        batch = batch.to("cpu")
        batch = batch.with_fields(length_limit=torch.full((len(batch),), sampling.max_tokens))
        told = present().from_first(lambda: reports(tools))
        return batch.with_columns(prompt=[row["prompt"] for row in answered], **told).answering(answered)

    def continuations(
        self,
        experience: Experience,
        row: Tensor,
        tokens: Tensor,
        sampling: Sampling,
        *,
        count: int,
        generator: torch.Generator,
        limit: Tensor | None = None,
    ) -> Experience:
        """Go on `count` times from rows `row` [S] after `tokens` [S] of their tokens: see `go_on`.

        Columns and task rows are those of the rows; `completion` is the whole response, what was there before included.
        """
        states = states_of(experience, row, tokens)
        engine = self.engine if isinstance(self.engine, TransformersEngine) else TransformersEngine(self.policy)
        seen = seen_rows(experience)
        begun = [(seen[i], self.policy.decode(s.response)) for i, s in zip(row.tolist(), states, strict=True)]
        tools = [replayed(self.task, *one) for one in begun for _ in range(count)]
        tool = None if all(t is None for t in tools) else tools
        batch = go_on(engine, states, sampling, count=count, generator=generator, limit=limit, tool=tool)
        added = zip(batch["action"].tolist(), batch["present"].sum(1).tolist(), strict=True)
        texts = [self.policy.decode([*states[i // count].response, *ids[:n]]) for i, (ids, n) in enumerate(added)]
        repeated = [i for i in row.tolist() for _ in range(count)]
        columns = {name: [values[i] for i in repeated] for name, values in experience.columns.items()}
        told = present().from_first(lambda: reports(tools))
        batch = batch.with_columns(**{**columns, **told, "completion": texts})
        return batch.answering([experience.task_rows[i] for i in repeated] if experience.task_rows else ())

    def check_rows(self, rows: Sequence[Row], max_tokens: int) -> None:
        """Find what is wrong with prompts and rewards before a run begins.

        Raises:
            UserError: a prompt that cannot be encoded or leaves no room for `max_tokens`, or a reward that needs a
                column that the rows do not have.
        """
        reported = reports(sessions(self.task, rows[:1]))
        columns = [*told_columns(rows[:1], reported)]
        for reward in self.task.rewards:
            check_signature(reward.name, reward.function, columns)
            if reward.checker:  # ours say by themselves what they miss
                reward.function(prompts=[], completions=[], **{name: [] for name in columns})
        self.engine.check([self.policy.encode_row(row) for row in rows], max_tokens)
        for split in self.task.fixed_pairs:
            self.pairs(split).check(CHECKED_ROWS)
        for split in self.task.labelled:
            self.labelled(split).check(CHECKED_ROWS)
        for split in self.task.completions:
            self.completions(split).check(CHECKED_ROWS)

    @property
    def reader(self) -> LanguagePolicy:
        """The policy."""
        return self.policy

    # ------------------------------------------------------------------------------------------- forward passes

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        """Row indices of similar length with at most `micro_batch_tokens` padded tokens (unless one unit has more).

        Where `updating` shares prompts, rows whose prompts are read together follow one another.
        """
        plan = self.policy.plan(experience, self.micro_batch_tokens) if shared else None
        return micro_batches_of(experience, self.micro_batch_tokens, grouped_by, None if plan is None else plan.chunk)

    def monitor(self, experience: Experience, context: Context) -> None:
        """Log the perplexity of what was sampled and, now and then, its KL to the start."""
        if "behaviour_logprob" not in experience:
            return  # nothing was sampled by the policy
        whole, steps = scored_rows(experience), sampled_steps(experience)
        counted = steps.float()
        behaviour = experience["behaviour_logprob"]
        context.log(perplexity=torch.exp(-(behaviour * counted).sum() / counted.sum().clamp(min=1)))
        if "ref_logprob" in experience:
            reference = experience["ref_logprob"]
        elif self.monitor_kl_every and (context.iteration - 1) % self._kl_period == 0:
            reference = self.reference_logprob(experience)
        else:
            return
        if bool(whole.any()):  # of a response that goes on its KL is not known yet
            context.log(kl=((behaviour - reference) * experience["mask"]).sum(1)[whole].mean())
        context.log(kl_per_token=((behaviour - reference) * counted).sum() / counted.sum().clamp(min=1))
        context.log(ref_perplexity=torch.exp(-(reference * counted).sum() / counted.sum().clamp(min=1)))

    @property
    def _kl_period(self) -> int:
        """Iterations between KL measurements: each one where the task draws something over the KL."""
        return 1 if any(chart.x == "kl" for chart in self.task.charts) else self.monitor_kl_every

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "logprob", "entropy" and "value" `[B, T]`, those that are wanted."""
        return self._outputs(experience, wants, None, {})

    @contextmanager
    def updating(self, batch: Experience, wants: Collection[str]) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
        """See `RunState.updating`. Each micro-batch must go backward before the next one is read."""
        plan = self.policy.plan(batch, self.micro_batch_tokens)
        readers: list[Backbone] = [self.policy] if {"logprob", "entropy"} & set(wants) else []
        if "value" in wants:  # the critic is of the policy's family
            readers.append(self._need_critic())
        with ExitStack() as stack:
            shared = {reader: stack.enter_context(reader.sharing(plan)) for reader in readers}
            yield lambda rows: self._outputs(batch, wants, rows, shared)

    def _outputs(
        self,
        batch: Experience,
        wants: Collection[str],
        rows: Tensor | None,
        shared: Mapping[Backbone, SharedPrompts | None],
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        policy_wants = set(wants) & {"logprob", "entropy"}
        if policy_wants:
            found.update(self.policy.evaluate(batch, want=policy_wants, rows=rows, shared=shared.get(self.policy)))
        if "value" in wants:
            critic = self._need_critic()
            found["value"] = critic.evaluate(batch, rows, shared.get(critic))
        return {name: tensor.cpu() for name, tensor in found.items()}

    def reference_logprob(self, experience: Experience) -> Tensor:
        """Log-probability of the actions under the starting policy, `[B, T]`.

        Of rows of a data set, which the field `example` numbers, it is measured once: pairs, or labelled responses.
        """
        if "example" not in experience or "reference" in self._moved:
            return self.reference_of(experience)
        given = self.labelled("train") if "desirable" in experience else self.pairs("train")
        return given.reference_cache.of(experience, self.reference_of)

    @torch.no_grad()
    def reference_of(self, experience: Experience) -> Tensor:
        """The same `[B, T]`, always measured."""
        if self.models is not None and "reference" in self.models:
            return self._measured(experience, self.models["reference"])
        if self.lora is not None:
            with self.policy.model.disable_adapter():
                return self._measured(experience, self.policy)
        return self._measured(experience, self.reference)

    @torch.no_grad()
    def logprob_under(self, name: str, experience: Experience) -> Tensor:
        """The same `[B, T]` under a model that the recipe names."""
        assert self.models is not None
        return self._measured(experience, self.models[name])

    @torch.no_grad()
    def frozen_logprob(self, experience: Experience, folder: str) -> Tensor:
        """The same `[B, T]` under the model in a folder, which is loaded once and never trained."""
        if folder not in self._frozen:
            self._frozen[folder] = load_frozen(folder, self.policy)
        return self._measured(experience, self._frozen[folder])

    @torch.no_grad()
    def value(self, experience: Experience) -> Tensor:
        """Critic's value of the state before each step, `[B, T]`."""
        return self._measured(experience, self._need_critic())

    def hidden_states(self, experience: Experience) -> Tensor:
        """The policy's last states `[B, T, H]` before each step: softmax(W h) is its distribution; 0 elsewhere."""
        return last_layer.hidden_states(self.policy, experience, self.micro_batch_tokens)

    def unembedding(self) -> Tensor:
        """The policy's output matrix W `[V, H]`."""
        return last_layer.unembedding(self.policy)

    @torch.no_grad()
    def entropy(self, experience: Experience) -> Tensor:
        """Entropy of the present policy before each step, `[B, T]`, nats."""
        return self._measured(experience, self.policy, "entropy")

    def _measured(self, experience: Experience, reader: LanguagePolicy | Critic, want: str = "logprob") -> Tensor:
        """What `reader` gives of every row that may train; greedy baselines never do, and stay 0."""
        result = torch.zeros(experience["mask"].shape)
        trained = (~experience["greedy"]).nonzero()[:, 0]
        batch = experience.only(READ).rows(trained)
        plan = reader.plan(batch, self.micro_batch_tokens)
        with reader.sharing(plan) as shared:
            chunk = None if plan is None else plan.chunk
            for rows in present().share(micro_batches_of(batch, self.micro_batch_tokens, chunk=chunk)):
                if isinstance(reader, Critic):
                    found = reader.evaluate(batch, rows, shared)
                else:
                    found = reader.evaluate(batch, want={want}, rows=rows, shared=shared)[want]
                result[trained[rows]] = found.float().cpu()
        present().add([result])
        return result

    @cached_property
    def reference(self) -> LanguagePolicy:
        """The frozen starting policy."""
        policy = load_policy(self.reference_name, device=self.device, precision=self.precision)
        policy.requires_grad_(False)
        return policy

    def release_reference(self) -> None:
        """Let the reference go, where it was loaded for a measurement alone; it is loaded again when asked for."""
        if not self.keeps_reference:
            vars(self).pop("reference", None)

    def _first_critic(self, start: bool | str) -> Critic:
        """A critic that begins as a copy of the policy, or of the reward model in a folder."""
        if not isinstance(start, str):
            return Critic.like(self.policy)
        critic = Critic.load(start, device=self.device, precision=self.precision)
        if critic.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
            raise UserError(
                f"The reward model in '{start}' reads other tokens than the policy, so no critic can begin as it; take "
                "--critic-start policy."
            )
        return critic

    def _need_critic(self) -> Critic:
        if self.critic is None:
            raise RuntimeError("this run state was made without a critic")
        return self.critic

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """What `polyrl.run_state.language_evaluation.evaluate` measures, and the first few responses."""
        acting = self.policy
        if self.models is not None:
            self._act_by(self.models.policy(self._judged))
        try:
            return evaluate(self)
        finally:
            self._act_by(acting)

    # -------------------------------------------------------------------------------------------------- folders

    def stored(self) -> dict[str, Stored]:
        """The models, and what the reference said of rows that are given."""
        found: dict[str, Stored] = {"policy": stored_policy("policy", self.policy, self.lora, trained(self.policy))}
        if self.models is not None:
            found = {**self.models.stored()}
        if self.critic is not None:
            found["critic"] = StoredFolder("critic", self.critic, Critic.load, trained(self.critic))
        found |= {name: model.stored(name) for name, model in self.own.items()}
        for name, cache in self.reference_caches().items():
            found[name] = StoredFile(name, cache)
        return found

    def start(self) -> str:
        """Fingerprint of the starting model."""
        return fingerprint(self.model_name)

    def evaluation_facts(self) -> dict[str, Any]:
        """How the run is judged."""
        return {**dataclasses.asdict(self.evaluation), "split": "test"}

    def export(self, folder: Path) -> None:
        """Write the policy that is judged as an ordinary model folder that transformers loads (adapters merged)."""
        policy = self.policy if self.models is None else self.models.policy(self._judged)
        policy.save(folder, merge=True)
