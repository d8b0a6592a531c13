"""A policy over the answers of a small world: its log-probabilities are a table, and its parameters one vector.

It has what a run asks of a policy of language, so that every loss, part and recipe for those works on it as it stands.
It has no hidden states and no tokenizer: an answer's tokens are the names of its steps.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.padding import PaddingSide
from polyrl.models.language.encoding import Prompt, Response
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import LanguagePolicy, Precision
from polyrl.models.language.prefix import Plan, SharedPrompts
from polyrl.models.language.rows import Index, take
from polyrl.models.language.token_scores import score_logits
from polyrl.tasks.language.base import content
from polyrl.tasks.language.chat import Chat
from polyrl.tasks.language.tables import AnswerTables

KIND = "polyrl-answer-tables"
"""What `config.json` says of such a folder."""
TABLES = ("log_reference", "features", "gold", "following", "seen")


def is_tables(folder: str | Path) -> bool:
    """Whether a folder holds such a policy."""
    try:
        stated = json.loads((Path(folder).expanduser() / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stated, dict) and stated.get("model_type") == KIND


class TablePolicy(LanguagePolicy):
    """log pi(a | s) = log ref(a | s) + phi(s, a) . theta + const, with theta `[d]` float32, 0 at the start.

    Attributes:
        tables: of the world whose answers it gives.
        theta: the parameters.
    """

    def __init__(self, tables: AnswerTables):
        nn.Module.__init__(self)
        self.tables, self.precision = tables, "float32"
        self.theta = nn.Parameter(torch.zeros(tables.features.shape[2]))
        self.eval()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        lora: LoraSettings | None = None,
    ) -> Self:
        """Read a folder that `save` wrote.

        Raises:
            UserError: it is none, or something is asked that tables do not have.
        """
        if lora is not None or precision != "float32" or str(device) != "cpu":
            raise UserError(
                "The policy of this task is a table of probabilities on the CPU, in float32 and without adapters; "
                "leave --lora, --precision and --device away."
            )
        folder = Path(name_or_path).expanduser()
        try:
            stated = json.loads((folder / "config.json").read_text("utf-8"))
            held = load_file(folder / "model.safetensors")
            policy = cls(AnswerTables(tuple(stated["tokens"]), **{name: held[name] for name in TABLES}))
            policy.theta.data.copy_(held["theta"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"The folder {folder} holds no policy over tables: {error}.") from None
        return policy

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write the world and the parameters."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        stated = {"model_type": KIND, "tokens": list(self.tables.tokens)}
        (place / "config.json").write_text(json.dumps(stated) + "\n", encoding="utf-8")
        held = {name: vars(self.tables)[name].contiguous() for name in TABLES}
        save_file({**held, "theta": self.theta.detach().contiguous()}, place / "model.safetensors")

    # ---- probabilities

    def table(self) -> Tensor:
        """Log-probabilities `[S, V]` float64, differentiable."""
        return torch.log_softmax(self.logits(), -1)

    def logits(self) -> Tensor:
        """`[S, V]` float64."""
        return self.tables.log_reference + self.tables.features @ self.theta.double()

    def evaluate(
        self,
        experience: Experience,
        *,
        want: Collection[str] = frozenset({"logprob"}),
        rows: Index | None = None,
        padding_side: PaddingSide = "right",
        shared: SharedPrompts | None = None,
    ) -> dict[str, Tensor]:
        """See `LanguagePolicy.evaluate`."""
        action, present, mask, temperature = (
            take(experience[name], rows) for name in ("action", "present", "mask", "temperature")
        )
        row, column = mask.nonzero(as_tuple=True)
        state, target = self.tables.walk(action, present)[row, column], action[row, column]
        if bool((temperature == 1).all()):
            table = self.table()
            logprob = table[state, target].float()
            entropy = -(table.exp() * table).sum(-1)[state].float() if "entropy" in want else None
        else:
            logprob, entropy = score_logits(self.logits()[state], target, temperature[row], "entropy" in want)
        found = {"logprob": logprob} if entropy is None else {"logprob": logprob, "entropy": entropy}
        blank = torch.zeros(mask.shape)
        return {name: blank.index_put((row, column), found[name]) for name in found if name in want}

    def plan(self, experience: Experience, max_tokens: int) -> Plan | None:
        """None: there is one prompt, and nothing is read of it."""
        return None

    @contextmanager
    def sharing(self, plan: Plan | None) -> Iterator[SharedPrompts | None]:
        """Nothing."""
        yield None

    @property
    def backbone(self) -> Any:
        """None.

        Raises:
            UserError: always.
        """
        raise UserError(
            "The policy of this task is a table of probabilities: it has no hidden states, which this method asks for; "
            "take a task of text, such as sort-pairs."
        )

    @property
    def causal_lm(self) -> Any:
        """None; see `backbone`."""
        return self.backbone

    # ---- names in place of a tokenizer

    @property
    def pad_id(self) -> int:
        """0; masks say what is padding."""
        return 0

    @property
    def context(self) -> int | None:
        """None: no answer is too long."""
        return None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """None: an answer ends where its walk does."""
        return ()

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> number."""
        return {name: number for number, name in enumerate(self.tables.tokens)}

    @property
    def chat(self) -> Chat | None:
        """None: there is no chat template."""
        return None

    def ask_as(self, chat: Chat | None) -> None:
        """Nothing: the one prompt is asked as it is."""

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt as it is."""
        return prompt

    def encode_row(self, row: Mapping[str, Any]) -> list[int]:
        """One token, which says nothing."""
        return [0]

    def encode_prompt(self, prompt: Prompt, **layout: Any) -> list[int]:
        """One token, which says nothing."""
        return [0]

    def encode_response(self, prompt: Prompt, response: Response, *, ended: bool = True, **layout: Any) -> list[int]:
        """Numbers of the answer's tokens.

        Raises:
            UserError: it is no answer of this world.
        """
        return self.tables.ids(content(response))

    def encode_turns(
        self, prompt: Prompt, response: Response, *, ended: bool = True, **layout: Any
    ) -> tuple[list[int], list[bool]]:
        """The same, and that the policy writes all of them."""
        ids = self.encode_response(prompt, response)
        return ids, [True] * len(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The answer in words."""
        return self.tables.text([*ids])


def load_policy(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    lora: LoraSettings | None = None,
) -> LanguagePolicy:
    """The policy in a folder, or of the Hugging Face hub: `TablePolicy.load` or `LanguagePolicy.load`."""
    kind = TablePolicy if is_tables(name_or_path) else LanguagePolicy
    return kind.load(name_or_path, device=device, precision=precision, lora=lora)
