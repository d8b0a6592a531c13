"""What differs between families and releases of transformers: each spelling of it gives the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Model

from polyrl.models.language.families import CACHE_ARGUMENTS, cache_argument, keeps_keys, takes
from polyrl.rollout.language import Sampling, TransformersEngine
from tiny_models import config_of, make_policy, naive_logits

INSTALLED = next(name for name in CACHE_ARGUMENTS if takes(GPT2Model, name))


class Spied(GPT2Model):
    read: list[int]
    """Tokens of a row in each forward pass."""

    def passed(self, input_ids: Any, kept: Any, **given: Any) -> Any:
        self.read.append(input_ids.shape[1])
        if kept is not None:  # else it may be there by the name that the model with its head gives it
            given[INSTALLED] = kept
        return GPT2Model.forward(self, input_ids, **given)


class Earlier(Spied):
    """Calls its cache as transformers did before 5.24."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, position_ids: Any = None, **more: Any) -> Any:
        return self.passed(input_ids, past_key_values, position_ids=position_ids, **more)


class Later(Spied):
    """Calls its cache as transformers does since."""

    def forward(self, input_ids: Any = None, cache: Any = None, position_ids: Any = None, **more: Any) -> Any:
        return self.passed(input_ids, cache, position_ids=position_ids, **more)


class Nameless(Spied):
    """Takes a state of its own making, which is no key-value cache."""

    def forward(self, input_ids: Any = None, state: Any = None, position_ids: Any = None, **more: Any) -> Any:
        return self.passed(input_ids, None, position_ids=position_ids, **more)


@pytest.mark.parametrize(("kind", "name"), [(Earlier, "past_key_values"), (Later, "cache"), (Nameless, None)])
def test_the_cache_is_given_by_the_name_that_the_model_has_for_it(kind: type, name: str | None, tmp_path: Path) -> None:
    policy = make_policy(tmp_path, "gpt2")
    policy.backbone.__class__, policy.backbone.read = kind, []
    assert cache_argument(kind) == name
    assert policy.keeps_cache == policy.can_share == (name is not None)
    if name is None:
        return
    prompts = [[5, 6, 7, 8], [9, 10]]
    cache = policy.empty_cache()
    with torch.no_grad():
        whole = policy.read(torch.tensor([prompts[0]]), None, torch.arange(4)[None], policy.empty_cache())
        policy.read(torch.tensor([prompts[0][:3]]), None, torch.arange(3)[None], cache)
        last = policy.read(torch.tensor([prompts[0][3:]]), None, torch.tensor([[3]]), cache)
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-4, atol=1e-5)
    policy.backbone.read.clear()
    batch = TransformersEngine(policy).generate(
        prompts, Sampling(max_tokens=6, greedy=True), completions_per_prompt=1, generator=torch.Generator()
    )
    assert policy.backbone.read[:2] == [4, 1]  # a token at a time after the prompts: the cache is used
    for row, prompt in enumerate(prompts):
        said = batch["action"][row][batch["present"][row]].tolist()
        assert said == [int(naive_logits(policy, prompt + said[:i])[-1].argmax()) for i in range(len(said))]
    torch.testing.assert_close(policy.evaluate(batch)["logprob"], batch["behaviour_logprob"], rtol=0, atol=1e-4)


def test_states_are_no_keys() -> None:
    assert keeps_keys(DynamicCache(config=config_of("gpt2", 100)))
    assert keeps_keys(DynamicCache(config=config_of("gemma2", 100)))
    assert not keeps_keys(DynamicCache(config=config_of("mamba", 100)))
