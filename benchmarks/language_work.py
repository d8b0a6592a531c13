"""The work of the language benchmark, the same for every library: models, prompts, reward, sizes, cases.

Only the standard library is needed to import this: every side reads it, in whatever environment it runs.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz +-*/=()<>.,:;?!#|_[]\n"
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PARTS = ("generation", "scoring", "log-probabilities", "loss and backward", "everything else")
"""What a step is split into. Log-probabilities are forward passes without gradients: reference, critic, old policy."""


@dataclass(frozen=True)
class Size:
    """A model of the Qwen3 architecture, and the batch that it is trained with."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    mlp: int
    prompts: int
    group: int
    """Completions a prompt."""
    length: int
    """Longest completion, tokens."""


SIZES = {
    "tiny": Size(hidden=128, layers=4, heads=4, head_dim=32, mlp=512, prompts=8, group=8, length=32),  # 1.06 million
    "small": Size(hidden=384, layers=8, heads=6, head_dim=64, mlp=1536, prompts=4, group=8, length=128),  # 18.9 million
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    method: str
    size: str
    goal: float
    """How many times faster polyrl is to be; 0: nothing was set."""
    precision: str = "float32"
    prompt_repeat: int = 1
    """How many times the prompt of 13 tokens is repeated."""
    steps: int = 4
    """Steps of one turn."""
    peers: tuple[str, ...] = ("trl",)
    """The first is the one that the ratio is to."""
    learning_rate: float = 1e-6
    """So small that completions keep the lengths of the start: every step of every library is the same work."""
    reward: str = "echo"
    """Name of the reward function below."""
    answer: int = 0
    """Tokens of every answer, which then never ends by itself; 0: up to the length of the size."""
    lora: int = 0
    """Rank of adapters on all linear layers, scaled by 32 / rank; 0 trains all weights."""
    family: str = "qwen3"
    """Architecture of the model: "qwen3", or "gemma3", which has none of polyrl's own passes."""

    @property
    def shape(self) -> Size:
        """Model and batch: of long answers only 16, as of two prompts."""
        size = SIZES[self.size]
        return dataclasses.replace(size, length=self.answer, prompts=2) if self.answer else size

    @property
    def model(self) -> str:
        """Name of the model's folder."""
        family = "" if self.family == "qwen3" else f"-{self.family}"
        return f"{self.size}{family}{f'-answers-{self.answer}' if self.answer else ''}"


BOTH = ("trl", "trl-tuned")
CASES = {
    "grpo-tiny": Case("grpo", "tiny", 2.0, peers=BOTH),
    "grpo-small": Case("grpo", "small", 2.5, steps=2, peers=BOTH),
    "grpo-small-bf16": Case("grpo", "small", 3.5, precision="bfloat16", steps=2, peers=("trl", "trl-defaults")),
    "grpo-tiny-long-prompts": Case("grpo", "tiny", 4.0, prompt_repeat=16, steps=2, peers=BOTH),
    "rloo-tiny": Case("rloo", "tiny", 2.5, peers=BOTH),
    "dpo-tiny": Case("dpo", "tiny", 2.0, peers=BOTH),
    "ppo-tiny": Case("ppo", "tiny", 0.0, steps=2, peers=("plain-loop",)),
    "grpo-tiny-answers-256": Case("grpo", "tiny", 0.0, steps=1, peers=BOTH, answer=256),
    "grpo-tiny-answers-512": Case("grpo", "tiny", 0.0, steps=1, peers=BOTH, answer=512),
    "grpo-tiny-lora": Case("grpo", "tiny", 0.0, steps=2, peers=BOTH, lora=16),
    "reward-model-tiny": Case("reward-model", "tiny", 0.0, peers=BOTH),
    "grpo-tiny-gemma3": Case("grpo", "tiny", 0.0, steps=2, peers=BOTH, family="gemma3"),
}
LEARNING = Case("grpo", "tiny", 0.0, learning_rate=1e-3, reward="digits")
"""Easy enough to be learned from a random start within a minute: not for speed, but to compare learning curves."""
WORK = {**CASES, "learning": LEARNING}
PEERS = {
    "trl": "TRL, its fastest setting on a CPU: no gradient checkpointing; bfloat16 means autocast over float32 weights",
    "trl-tuned": "the same with a batch in four parts (gradient accumulation) and an allocator that keeps memory",
    "trl-defaults": "TRL as it comes: bfloat16 autocast and gradient checkpointing",
    "plain-loop": "a plain PPO loop on transformers: generate, padded batches, a separate critic",
}

ACCUMULATION = 4
"""Parts of a batch of "trl-tuned": the update is the same, in memory that caches hold."""
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""Environment of "trl-tuned": what polyrl asks of the C library by itself."""
CAPPED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Environment of all sides in the column without AVX-512."""

# ----------------------------------------------------------------------------------------------- equal on all sides

PAIRED = ("dpo", "reward-model")
"""Methods that learn from pairs."""
GRPO = {"clip": 0.2, "group_epsilon": 1e-4}
"""TRL's defaults: loss_type "dapo" (mean over the batch's tokens), scale_rewards "group", beta 0, one iteration."""
RLOO_BETA = 0.05
DPO_BETA = 0.1
PPO = {"kl_coef": 0.02, "gamma": 1.0, "gae_lambda": 0.98, "clip": 0.2, "value_coef": 0.5, "epochs": 2, "minibatches": 2}
MAX_GRAD_NORM = 1.0


def echo(completions: list[str], target: list[str], **_: object) -> list[float]:
    """Share of positions at which a completion agrees with its target (a reward function as TRL and polyrl take it)."""
    return [
        sum(a == b for a, b in zip(said, wanted, strict=False)) / max(len(said), len(wanted))
        for said, wanted in zip(completions, target, strict=True)
    ]


def digits(completions: list[str], **_: object) -> list[float]:
    """Share of characters that are digits."""
    return [sum(c.isdigit() for c in said) / max(len(said), 1) for said in completions]


REWARDS: dict[str, Callable[..., list[float]]] = {"echo": echo, "digits": digits}


def prompts(size: Size, count: int, seed: int, repeat: int = 1) -> list[dict[str, str]]:
    """Rows such as {"prompt": "echo 7 x 12 =", "target": "777777777777"}."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        digit, times = rng.randrange(10), rng.randint(1, size.length - 1)
        rows.append({"prompt": f"echo {digit} x {times} =" * repeat, "target": str(digit) * times})
    return rows


def pairs(size: Size, count: int, seed: int) -> list[dict[str, str]]:
    """The right answer as `chosen`, one of another length and wrong digits as `rejected`."""
    rng = random.Random(seed)
    rows = []
    for row in prompts(size, count, seed):
        wrong = "".join(rng.choices("0123456789", k=rng.randint(1, size.length - 1)))
        if wrong != row["target"]:
            rows.append({"prompt": row["prompt"], "chosen": row["target"], "rejected": wrong})
    return rows


def data(case: Case, split: str, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a case: to train on as many as no run of it uses twice, and a few other ones to be judged on."""
    size = case.shape

    def rows(count: int, stream: int) -> list[dict[str, str]]:
        if case.method in PAIRED:
            return pairs(size, count, stream)
        return prompts(size, count, stream, case.prompt_repeat)

    test = rows(8, 2 * seed + 1)
    if split == "test":
        return test
    held_out = {row["prompt"] for row in test}
    return [row for row in rows(4096, 2 * seed) if row["prompt"] not in held_out]


def write_rows(rows: list[dict[str, str]], file: Path) -> Path:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def build_model(size: Size, folder: Path, family: str = "qwen3", *, ends: bool = True) -> Path:
    """Write a freshly initialized model (seed 0, tied head) and its character tokenizer, unless they are there.

    One that never ends has a common direction in all embeddings, against which that of the end token points.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *ALPHABET])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    pad, bos, eos, unk = SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk, padding_side="left"
    )
    torch.manual_seed(0)
    kind = {"qwen3": "qwen3", "gemma3": "gemma3_text"}[family]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind,
            vocab_size=64,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            head_dim=size.head_dim,
            intermediate_size=size.mlp,
            max_position_embeddings=512 if size.length < 256 else 1024,
            tie_word_embeddings=True,
            pad_token_id=SPECIALS.index(pad),
            bos_token_id=SPECIALS.index(bos),
            eos_token_id=SPECIALS.index(eos),
        )
    )
    if not ends:
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            embeddings += 0.05
            embeddings[SPECIALS.index(eos)] = -0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
