"""Conversations as rows of data, and a policy whose tokenizer knows a chat template, for tests of data."""

from __future__ import annotations

import pytest

from polyrl.models.language.policy import LanguagePolicy
from tiny_models import make_policy, multi_character_tokenizer


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    """A policy over a, b and c with tokens of several letters and a chat template; its tokenizer knows end tokens."""
    policy = make_policy(tmp_path_factory.mktemp("letters"), tokenizer=multi_character_tokenizer())
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}a{% else %}b{% endif %}{{ m.content }}<eos>c{% endfor %}"
        "{% if add_generation_prompt %}b{% endif %}"
    )
    return policy


def talk(*contents: str) -> list[dict[str, str]]:
    """The user and the assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def answer(text: str) -> list[dict[str, str]]:
    """One message of the assistant."""
    return [{"role": "assistant", "content": text}]
