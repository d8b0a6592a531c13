"""The run state in which a reward model is trained: preference pairs, and a model that gives each response a score."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy, Precision
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import RewardModel
from polyrl.models.stored import Stored, StoredFolder
from polyrl.pretrain.reward_training import normalize
from polyrl.run_state.pairs import judged_pairs
from polyrl.run_state.user_data import UserDataRunState
from polyrl.runtime.files import fingerprint
from polyrl.runtime.seeding import generator
from polyrl.tasks.language.base import LanguageTask

if TYPE_CHECKING:
    from polyrl.recipe import Term

FOLDER = "reward-model"


class RewardModelRunState(UserDataRunState):
    """A task's preference pairs and the reward model that learns from them."""

    def __init__(
        self,
        task: LanguageTask,
        model: str | Path,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "float32",
        micro_batch_tokens: int = 1024,
        prompts: int = 200,
        shown: int = 8,
        terms: Sequence[Term] = (),
    ):
        """`model` is a language model, or a reward model to go on with; `terms` give the loss of held-out pairs."""
        self.task, self.model_name, self.seed = task, str(model), seed
        self.device, self.micro_batch_tokens = device, micro_batch_tokens
        self.prompts, self.shown, self.terms = prompts, shown, tuple(terms)
        if (Path(model).expanduser() / "head.safetensors").is_file():
            self.model = RewardModel.load(model, device=device, precision=precision)
        else:
            policy = LanguagePolicy.load(model, device=device, precision=precision)
            self.model = RewardModel.like(policy, generator(seed, "reward head")).to(torch.device(device))

    @property
    def reader(self) -> RewardModel:
        """The reward model."""
        return self.model

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "score" of each row, `[B]`."""
        if unknown := set(wants) - {"score"}:
            raise UserError(f"A reward model gives scores, not {', '.join(sorted(unknown))}; use BradleyTerry alone.")
        return {"score": self.model.score(experience).float().cpu()}

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        """Row indices of similar length with at most `micro_batch_tokens` padded tokens (unless one unit has more)."""
        return micro_batches_of(experience, self.micro_batch_tokens, grouped_by)

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Accuracy, margin and loss on held-out pairs, and the scores of the first few."""
        return judged_pairs(self, self.pairs("test"), self.terms, most=self.prompts, shown=self.shown, output="score")

    def stored(self) -> dict[str, Stored]:
        """The reward model, backbone and head."""
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        return {FOLDER: StoredFolder(FOLDER, self.model, RewardModel.load, trained)}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the model with scores of mean 0 and standard deviation 1 on the responses of held-out pairs."""
        pairs = self.pairs("test")
        batch = pairs.batch(range(len(pairs)))
        scores = torch.zeros(len(batch))
        for index in self.micro_batches(batch):
            scores[index] = self.outputs(batch.rows(index), {"score"})["score"]
        model = copy.deepcopy(self.model)
        if bool(scores.std(correction=0) > 0):
            normalize(model, scores)
        model.save(folder)

    def start(self) -> str:
        """Fingerprint of the starting model."""
        return fingerprint(self.model_name)

    def evaluation_facts(self) -> dict[str, Any]:
        """How the run is judged."""
        return {"pairs": min(self.prompts, len(self.pairs("test"))), "split": "test"}
