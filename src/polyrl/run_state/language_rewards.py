"""What a run of language asks of rewards, of the task's checker and of preference functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.run_state.language_evaluation import scores_by_reward, seen_rows, told
from polyrl.run_state.user_data import UserDataRunState
from polyrl.runtime.ranks import all_ranks, present
from polyrl.tasks.language import LanguageTask
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.judge import PreferenceRunner
from polyrl.tasks.language.reward_runner import RewardRunner, Scores
from polyrl.tasks.language.run_facts import Logged, RunFacts, TrainerState


class RewardedRunState(UserDataRunState):
    """A run whose responses are scored or compared.

    Attributes:
        task: what is answered.
        calls: what happens where a function of the user fails or is slow.
        rewards: the task's reward functions; None where given responses are learned from and judged by without any.
    """

    def __init__(self, task: LanguageTask, calls: CallPolicy):
        self.task, self.calls = task, calls
        self.rewards: RewardRunner | None = None
        self._context: Context | None = None
        self._logged: tuple[int, dict[str, list[float]]] = (-1, {})
        self._ensembles: dict[int, RewardRunner] = {}
        self._judge: PreferenceRunner | None = None
        if task.rewards or not (task.fixed_pairs or task.labelled or task.completions):
            self.rewards = RewardRunner(task.rewards, self.calls)
        if task.preference is not None:
            self._judge = PreferenceRunner(task.preference, self.calls)
        if all_ranks().first:  # before models are loaded, so that the user's functions' processes hold none
            if self.rewards is not None:
                self.rewards.start()
            if self._judge is not None:
                self._judge.start()

    def prefer(self, experience: Experience, first: Sequence[int], second: Sequence[int]) -> list[float]:
        """Probability that the response in row `first[i]` beats that in row `second[i]`, by the task's preference.

        NaN where it failed and such comparisons are to be dropped.

        Raises:
            UserError: the task has no preference function, or it fails and the run is to stop.
        """
        if self._judge is None:
            raise UserError(
                f"The part 'preference-label' needs a preference function, and the task '{self.task.name}' has none; "
                "give --preference file.py:function."
            )
        winners = experience.rows(first)
        prompts, a = winners.columns["prompt"], winners.columns["completion"]
        b = [experience.columns["completion"][i] for i in second]
        judge = self._judge
        return present().from_first(lambda: judge(prompts, a, b, told(winners)))

    def scores(self, experience: Experience) -> Scores:
        """What the rewards say of all responses; raises `UserError` where the run has none."""
        if self.rewards is None:
            raise UserError(
                "There is no reward, and the data has none by itself; give --reward with file.py:function, a reward "
                "model's folder, or one of numeric, exact and contains."
            )
        return self._ask(self.rewards, experience)

    def _ask(self, runner: RewardRunner, experience: Experience) -> Scores:
        """What rewards say; of several processes the first asks them, and tells the others all but the failures."""
        columns = experience.columns
        ranks = present()

        def ask() -> Scores:
            return runner(columns["prompt"], columns["completion"], self._facts(experience), **told(experience))

        return ask() if ranks.alone else Scores.read(ranks.from_first(lambda: ask().plain()))

    def begin(self, context: Context) -> None:
        """Know how far the run is, for rewards that ask."""
        self._context = context

    def _facts(self, experience: Experience) -> RunFacts:
        """What rewards are told of the run beside what they judge."""
        size = experience["present"].sum(1).tolist()
        ids = [row[:n] for row, n in zip(experience["action"].tolist(), size, strict=True)]
        return RunFacts(ids, TrainerState() if self._context is None else trainer_state(self._context))

    def _log(self, logged: Logged) -> None:
        """Log what rewards logged, as means over the iteration so far."""
        context = self._context
        if context is None:
            return
        if self._logged[0] != context.iteration:
            self._logged = (context.iteration, {})
        for name, values in logged.metrics.items():
            kept = self._logged[1].setdefault(name, [])
            kept += values
            context.metrics[f"logged/{name}"] = fmean(kept)

    def score(self, experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        """Scores `[B]` (NaN: dropped), the parts of each reward function `[B]`, and how many samples were scored."""
        scores = self.scores(experience)
        self._log(scores.logged)
        return torch.tensor(scores.total, dtype=torch.float32), scores_by_reward(scores), scores.calls

    def member_scores(self, experience: Experience, members: int) -> tuple[Tensor, int]:
        """Scores of the task's reward ensemble, float32 `[B, k]` (NaN: dropped), and how many samples were scored."""
        if members not in self._ensembles:
            rewards = self.task.ensemble(members)
            self._ensembles[members] = RewardRunner(rewards, self.calls)
        scores = self._ask(self._ensembles[members], experience)
        self._log(scores.logged)
        found = torch.tensor([*scores.parts.values()], dtype=torch.float32).T
        return found.nan_to_num(0.0) if self.calls.on_error == "zero" else found, scores.calls

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        """What the task measures beside the reward, float32 `[B]` each: to be logged, never trained on."""
        pairs = zip(seen_rows(experience), experience.columns["completion"], strict=True)
        found = [self.task.measures(row, text) for row, text in pairs]
        return {name: torch.tensor([f[name] for f in found], dtype=torch.float32) for name in found[0]}


def trainer_state(context: Context) -> TrainerState:
    """How far a run is: its optimizer steps, and how many it comes to at what its iterations took so far."""
    done = context.spent if context.spent.iterations == context.iteration else context.began
    steps = context.spent.updates
    limit = context.budget.limits().get("updates", math.inf)
    whole = context.budget.expected_iterations(done) if done.iterations else math.inf
    if not math.isinf(whole):
        limit = min(limit, round(whole * done.updates / done.iterations))
    most = max(1, steps, 1 if math.isinf(limit) else int(limit))
    return TrainerState(global_step=steps, max_steps=most, epoch=min(1.0, steps / most))
