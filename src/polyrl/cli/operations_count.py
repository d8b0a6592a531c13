"""How many operations an iteration takes, and how many the machine does a second: for `polyrl profile`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.core.experience import Experience
    from polyrl.recipe import Recipe
    from polyrl.run_state.base import RunState

PEAK_SECONDS = 0.2
"""How long the machine's peak is measured."""


# ------------------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Read:
    """What forward passes over some rows must do.

    Attributes:
        tokens: tokens (or states) that are read.
        attended: sum over them of how many tokens each attends to, itself among them.
        predicted: how many the output head is asked for.
    """

    tokens: int
    attended: int = 0
    predicted: int = 0

    @classmethod
    def of(cls, prompts: Tensor, responses: Tensor, group: Tensor) -> Read:
        """Count rows with `prompts` and `responses` tokens, `[B]` both; a prompt is read once for each `group` `[B]`.

        Every response token is predicted from the token before it, so the last one is not read.
        """
        first = {int(g): int(p) for g, p in zip(group, prompts, strict=True)}  # the prompt's length by group
        read = (responses - 1).clamp(min=0)
        tokens = sum(first.values()) + int(read.sum())
        # token number n attends to n; so n of them in a row to n (n + 1) / 2
        alone = sum(p * (p + 1) // 2 for p in first.values())
        attended = alone + int((read * prompts + read * (read + 1) // 2).sum())
        return cls(tokens, attended, int(responses.sum()))


@dataclass(frozen=True)
class ModelSize:
    """What a token or a state costs in a model.

    Attributes:
        weights: numbers in the matrices that every token is multiplied with.
        head: those of the output head, which only tokens that are predicted from need.
        width: layers times heads times size of a head: attention to one other token takes 4 * width FLOPs.
        trained: share of `weights` that have gradients: adapters leave the others as they are.
    """

    weights: int
    head: int = 0
    width: int = 0
    trained: float = 1.0

    @property
    def backward(self) -> float:
        """FLOPs of a backward pass as a multiple of the forward pass: one for the inputs, one for trained weights."""
        return 1 + self.trained

    def forward(self, read: Read) -> int:
        """FLOPs of forward passes."""
        return 2 * (self.weights * read.tokens + self.head * read.predicted) + 4 * self.width * read.attended


def language_model_size(model: Any) -> ModelSize:
    """The size of a transformers model, with or without an output head; `width` is 0 where it has no attention."""
    output = model.get_output_embeddings()
    head = 0 if output is None else output.weight.numel()
    # embeddings are looked up, not multiplied with
    apart = {id(layer.weight) for layer in (model.get_input_embeddings(), output) if layer is not None}
    body = [p for p in model.parameters() if p.dim() == 2 and id(p) not in apart]
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    weights = sum(p.numel() for p in body)
    return ModelSize(
        weights=weights,
        head=head,
        width=config.num_hidden_layers * heads * size,
        trained=sum(p.numel() for p in body if p.requires_grad) / max(weights, 1),
    )


def network_size(network: Any) -> ModelSize:
    """The size of a network of linear layers."""
    return ModelSize(weights=sum(p.numel() for p in network.parameters() if p.dim() == 2))


def stage_flops(run_state: RunState, recipe: Recipe, experience: Experience) -> dict[str, float]:
    """FLOPs that collecting and improving need for one iteration, by stage; empty where they are not known.

    Passes that only measure (reference, values) are left out. Known for language and control, where models are networks
    and `Optimize` takes gradient steps.
    """
    from polyrl.parts.optimize import Optimize
    from polyrl.run_state.control import ControlRunState
    from polyrl.run_state.language_run_state import LanguageRunState

    if not isinstance(recipe.optimize, Optimize) or not isinstance(run_state, LanguageRunState | ControlRunState):
        return {}
    policy: Any = run_state.policy
    critic: Any = run_state.critic
    if "prompt_mask" in experience:
        sizes = [language_model_size(policy.causal_lm)]
        if critic is not None:
            sizes.append(language_model_size(critic.backbone))
        sampled, trained = (
            read_rows(experience, experience["present"].any(1)),
            read_rows(experience, _counted(experience)),
        )
        if "behaviour_logprob" not in experience:
            sampled = Read(0)  # given, not sampled
    elif "observation" in experience:
        sizes = [network_size(model) for model in (policy, critic) if model is not None]
        sampled = trained = Read(int(experience["mask"].sum()))
    else:
        return {}
    update = sum(size.forward(trained) * (1 + size.backward) for size in sizes)
    return {"collect": float(sizes[0].forward(sampled)), "improve": recipe.optimize.epochs * update}


def read_rows(experience: Experience, rows: Tensor) -> Read:
    """What must be read of some rows, `[B]` bool."""
    prompts, responses = experience["prompt_mask"].sum(1), experience["present"].sum(1)
    return Read.of(prompts[rows], responses[rows], experience["group"][rows])


def _counted(experience: Experience) -> Tensor:
    return (experience["weight"] != 0).any(1)


# ------------------------------------------------------------------------------------------------------- peak


def matmul_rate(dtype: torch.dtype, device: str = "cpu", size: int = 1024) -> float:
    """FLOP/s of square matrix products here and now: PyTorch's own, or oneDNN's where polyrl takes those."""
    import torch
    from torch.nn import functional

    from polyrl.kernels import linear

    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    ways: list[Callable[..., Any]] = [functional.linear]
    if linear.fits(a, b):
        ways.append(linear.product)

    def seconds(way: Callable[..., Any]) -> float:
        way(a, b)
        took, end = math.inf, time.perf_counter() + PEAK_SECONDS
        while (began := time.perf_counter()) < end:
            way(a, b)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            took = min(took, time.perf_counter() - began)
        return took

    return 2 * size**3 / min(map(seconds, ways))
