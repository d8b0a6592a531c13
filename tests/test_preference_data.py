"""Preference pairs as data: TRL's formats, token ids, what is wrong with them, who labels them, how they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversations import answer, letters, talk
from polyrl.core.experience import Experience
from polyrl.data.pairs import numbers_of_step
from polyrl.errors import UserError
from polyrl.models.language.pairs import FixedPairs, ReferenceLogprobCache, encode_pair, encode_response
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.pairs import best_versus_worst, win_shares
from polyrl.pretrain.pairs import give_pairs
from polyrl.tasks.language.base import Preference
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.judge import compared, load_preference
from polyrl.tasks.language.preferences import PairDataset, SortPairs, dataset_task
from polyrl.tasks.language.wanted import PairsWanted

__all__ = ["letters"]

Make = Callable[..., LanguagePolicy]


def some(count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}: ", "chosen": f"yes {i}", "rejected": f"no {i}", **more} for i in range(count)]


def test_the_length_limit_of_pairs_is_the_tasks_or_their_longest_response(letters: LanguagePolicy) -> None:
    rows = [{"prompt": "a", "chosen": "abcabc", "rejected": "b"}, {"prompt": "c", "chosen": "c", "rejected": "a"}]
    for limit, wanted in ((1, None), (99, 99)):
        batch = FixedPairs(letters, rows, "some pairs", max_tokens=limit).batch([0, 1])
        widest = batch["action"].shape[1]
        assert widest > 1 and batch["length_limit"].tolist() == [wanted or widest] * 4


# ------------------------------------------------------------------------------------------------------ the formats


def test_pairs_make_a_pair_data_set_and_prompts_do_not() -> None:
    assert type(dataset_task(some())) is PairDataset
    assert type(dataset_task([{"prompt": f"p{i}", "answer": "1"} for i in range(9)])) is DatasetTask
    task = dataset_task(some(200))
    pairs = task.fixed_pairs
    assert len(pairs["train"]) + len(pairs["test"]) == 200 and 8 <= len(pairs["test"]) <= 40
    assert task.metric.key == "eval/pair_accuracy"


def test_an_implicit_prompt_is_what_both_responses_begin_with() -> None:
    """As TRL's `extract_prompt`: a last space belongs to the responses."""
    rows = [{"chosen": f"Q{i}: is it? A: yes", "rejected": f"Q{i}: is it? A: no"} for i in range(20)]
    row = next(r for r in PairDataset(rows).fixed_pairs["train"])
    assert row["prompt"].endswith("? A:") and (row["chosen"], row["rejected"]) == (" yes", " no")
    said = [{"chosen": talk(f"q{i}", "yes"), "rejected": talk(f"q{i}", "no")} for i in range(20)]
    row = next(r for r in PairDataset(said).fixed_pairs["train"])
    assert row["prompt"] == talk(row["prompt"][0]["content"])
    assert (row["chosen"], row["rejected"]) == (answer("yes"), answer("no"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_pairs_come_from_files(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"pairs{suffix}"
    rows = some(30)
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    file.write_text(text)
    assert dataset_task(str(file)).fixed_pairs == dataset_task(rows).fixed_pairs


# -------------------------------------------------------------------------------------------------------- token ids


def test_plain_text_is_closed_by_the_end_token(letters: LanguagePolicy) -> None:
    end = letters.tokenizer.eos_token_id
    assert encode_response(letters, "a", "bca") == [*letters.encode("bca"), end]
    assert encode_response(letters, "a", "bca<eos>") == [*letters.encode("bca"), end]  # said already
    assert encode_response(letters, "a", "bca", ended=False) == letters.encode("bca")


def test_a_conversation_ends_with_its_turn(letters: LanguagePolicy) -> None:
    """What a template writes behind the end of a turn is not part of the response; what the policy would say is."""
    end = letters.tokenizer.eos_token_id
    for response in (answer("ca"), "ca"):
        assert encode_response(letters, talk("c"), response) == [*letters.encode("ca"), end]
    pair = encode_pair(letters, {"prompt": talk("c"), "chosen": answer("ca"), "rejected": answer("cc")}, "here")
    assert pair.prompt == letters.encode_prompt(talk("c"))
    assert pair.chosen[-1] == pair.rejected[-1] == end and pair.chosen != pair.rejected


def test_a_batch_of_pairs(letters: LanguagePolicy) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "cc"},
        {"prompt": "abc", "chosen": "a", "rejected": "c", "rejected_ended": False},
    ]
    batch = FixedPairs(letters, rows, "pairs", max_tokens=2).batch([1, 0, 1])
    assert batch["pair"].tolist() == [0, 0, 1, 1, 2, 2] and batch["example"].tolist() == [2, 3, 0, 1, 2, 3]
    assert batch["preferred"].tolist() == [True, False] * 3 and not bool(batch["greedy"].any())
    assert batch["ended"].tolist() == [True, False, True, True, True, False]
    assert bool((batch["temperature"] == 1).all()) and bool((batch["mask"] == batch["present"]).all())
    end = letters.tokenizer.eos_token_id
    last = [ids[n - 1] for ids, n in zip(batch["action"].tolist(), batch["present"].sum(1).tolist(), strict=True)]
    assert [token == end for token in last] == batch["ended"].tolist()


# -------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"rejected": "yes 3"}, ["row 4", "equal"]),
        ({"chosen": "  "}, ["row 4", "'chosen'", "empty"]),
        ({"rejected": 7}, ["row 4", "'rejected'", "text"]),
        ({"rejected": [{"role": "assistant"}]}, ["row 4", "'rejected'"]),
        ({"prompt": ""}, ["row 4", "'prompt'", "empty"]),
    ],
)
def test_broken_pairs_are_named(broken: dict[str, Any], words: list[str]) -> None:
    rows = some()
    rows[3] |= broken
    with pytest.raises(UserError) as told:
        dataset_task(rows)
    assert all(w in str(told.value) for w in words), told.value
    assert "\n" not in str(told.value)


def test_missing_columns_are_named() -> None:
    rows = some()
    del rows[5]["rejected"]
    with pytest.raises(UserError, match=r"row 6: no column 'rejected'"):
        dataset_task(rows)
    with pytest.raises(UserError, match=r"no column 'prompt'.*in common"):
        dataset_task([{"chosen": "yes", "rejected": "no"}])
    with pytest.raises(UserError, match="both be text or both"):
        dataset_task([{"chosen": "yes", "rejected": answer("yes and no")}])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b" * 200, "rejected": "c"}, "chosen response have 202 tokens"),
        ({"prompt": "a" * 200, "chosen": "b", "rejected": "c"}, "context of 128"),
        ({"prompt": "a", "chosen": "b", "rejected": "b<eos>"}, "the same tokens"),
        ({"prompt": "a", "chosen": "b", "rejected": "", "rejected_ended": False}, "rejected response has no tokens"),
    ],
)
def test_pairs_that_cannot_be_token_ids(row: dict[str, Any], words: str, letters: LanguagePolicy) -> None:
    with pytest.raises(UserError, match=words) as told:
        FixedPairs(letters, [row], "the train pairs").batch([0])
    assert "pair 1" in str(told.value)


# ------------------------------------------------------------------------------------------------ what is kept of them


def test_each_row_is_measured_once_and_kept_for_a_resumed_run(tmp_path: Path, letters: LanguagePolicy) -> None:
    rows = [{"prompt": "a" * (i % 3 + 1), "chosen": "b" * (i + 1), "rejected": "c" * (i % 4 + 1)} for i in range(9)]
    pairs = FixedPairs(letters, rows, "pairs")
    asked: list[int] = []

    def measure(batch: Experience) -> Tensor:
        asked.extend(batch["example"].tolist())
        with torch.no_grad():
            return letters.evaluate(batch)["logprob"]

    for step in ([0, 1, 2], [2, 3, 2], [8, 7, 6, 5, 4], [0, 8]):
        batch = pairs.batch(step)
        with torch.no_grad():
            direct = letters.evaluate(batch)["logprob"]
        assert torch.allclose(pairs.reference_cache.of(batch, measure), direct, atol=1e-5)
    assert sorted(asked) == list(range(18))
    pairs.reference_cache.save(tmp_path / "kept.safetensors")
    again = ReferenceLogprobCache()
    again.load(tmp_path / "kept.safetensors")
    batch = pairs.batch([4, 0])
    assert torch.equal(again.of(batch, measure), pairs.reference_cache.of(batch, measure)) and len(asked) == 18
    again.load(tmp_path / "nothing")
    assert len(again) == 0


def test_an_epoch_has_every_pair_once_and_the_next_has_another_order() -> None:
    steps = [numbers_of_step(3, 10, start, 4) for start in range(0, 40, 4)]
    flat = [n for step in steps for n in step]
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers_of_step(3, 10, 8, 4) == steps[2] and numbers_of_step(4, 10, 8, 4) != steps[2]


# --------------------------------------------------------------------------------------------------------- labelling


def test_best_is_paired_with_worst_in_each_group_and_ties_are_dropped() -> None:
    score = torch.tensor([0.5, 2.0, 1.0, 1.0, -1.0, 9.0, 1.0])
    group = torch.tensor([7, 4, 7, 2, 4, 4, 2])
    counted = torch.tensor([True, True, True, True, True, False, True])
    pair, preferred, ties = best_versus_worst(score, group, counted)
    assert pair.tolist() == [7, 4, 7, -1, 4, -1, -1] and ties == 1
    assert preferred.tolist() == [False, True, True, False, False, False, False]
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    again = best_versus_worst(score[order], group[order], counted[order])
    assert torch.equal(again[0], pair[order]) and torch.equal(again[1], preferred[order])


def test_shares_of_comparisons_that_are_won() -> None:
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    shares = win_shares(torch.tensor([1.0, 0.5, 0.0]), first, second, 4)
    assert shares.tolist() == [0.75, 0.0, 0.75, 0.5]


def longer(prompts: list[Any], completions_a: list[str], completions_b: list[str]) -> list[float]:
    return [float(len(a) > len(b)) for a, b in zip(completions_a, completions_b, strict=True)]


def test_a_preference_function_sees_what_it_asks_for() -> None:
    columns = {"answer": ["x", "y"]}
    assert compared(Preference("longer", longer), ["p", "q"], ["aa", "a"], ["b", "bb"], columns) == [1.0, 0.0]
    seen: dict[str, Any] = {}

    def curious(**given: Any) -> Any:
        seen.update(given)
        return torch.tensor([0.25, 1.0])

    here, judge = CallPolicy(process="same"), Preference("curious", curious)
    assert compared(judge, ["p", talk("q")], ["a", "b"], ["c", "d"], columns, here) == [0.25, 1.0]
    assert seen["completions_a"] == ["a", answer("b")] and seen["answer"] == ["x", "y"]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([0.5, 1.2], "comparison 2 of 2 .*returned 1.2 where"),
        ([-0.1, 1.0], "comparison 1 of 2 .*returned -0.1 where"),
        ([float("nan"), 1.0], "comparison 1 of 2 .*returned nan where"),
        ([0.5], "1 value for 2 comparisons"),
        ([0.5, None], "comparison 2 of 2 .*returned None where"),
        ([0.5, "a"], "comparison 2 of 2 .*returned a str where a probability"),
        (0.5, "a float where a list"),
        ("ab", "a str where a list"),
    ],
)
def test_a_preference_function_that_returns_nonsense(result: Any, words: str) -> None:
    judge = Preference("judge", lambda **given: result)
    with pytest.raises(UserError, match=words) as told:
        compared(judge, ["p", "q"], ["a", "b"], ["c", "d"], {})
    assert "'judge'" in str(told.value)


def test_a_preference_function_that_raises_or_is_not_there(tmp_path: Path) -> None:
    def fails(**given: Any) -> list[float]:
        raise KeyError("gone")

    with pytest.raises(
        UserError,
        match=r"'fails' failed on comparison 1 of 1 in the batch .prompt 'p'.: raised KeyError: 'gone' .*_data.py",
    ):
        compared(Preference("fails", fails), ["p"], ["a"], ["b"], {})
    (tmp_path / "judge.py").write_text(
        "def fair(prompts, completions_a, completions_b):\n    return [0.5] * len(prompts)\n"
    )
    assert load_preference(f"{tmp_path}/judge.py:fair").name == "fair"
    with pytest.raises(UserError, match="no function 'unfair'"):
        load_preference(f"{tmp_path}/judge.py:unfair")


# --------------------------------------------------------------------------------------------------------- sort-pairs


def test_the_gold_score_of_sort_pairs() -> None:
    task = SortPairs()
    row = {"prompt": "52814>", "digits": "52814", "answer": "12458"}
    scores = {"12458": 4.0, "12459": 3.2, "1245": 2.95, "124588": 3.75, "1245a": 1.2, "": -1.25, "zzzzz": -2.0}
    for text, gold in scores.items():
        assert task.gold(row, text) == pytest.approx(gold), text
    probability = task.gold_preference(
        prompts=["x"], completions_a=["12458"], completions_b=["1245a"], **{"digits": ["52814"], "answer": ["12458"]}
    )
    assert probability == [pytest.approx(1 / (1 + torch.tensor(-2.8).exp().item()))]


def test_demonstrations_are_as_corrupted_as_they_say() -> None:
    task = SortPairs()
    rows = task.rows("train", 0, 0, 3000)
    assert all(4 <= len(r["digits"]) <= 6 for r in rows) and rows == task.rows("train", 0, 0, 3000)
    texts = [task.demonstrated(r) for r in rows]
    wrong = [a != b for r, t in zip(rows, texts, strict=True) for a, b in zip(r["answer"], t, strict=False)]
    # a replaced character is right again one time in fifteen
    assert sum(wrong) / len(wrong) == pytest.approx(0.3 * 14 / 15, abs=0.02)
    longer = [len(t) > len(r["answer"]) for r, t in zip(rows, texts, strict=True)]
    assert sum(longer) / len(longer) == pytest.approx(0.1, abs=0.02)
    assert max(map(len, texts)) <= task.longest()


@pytest.mark.parametrize("settings", [{"corruption": 1.5}, {"lengthening": -0.1}, {"pairs": 0}, {"difficulty": 3}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"from|at least"):
        SortPairs(**settings)


def test_pairs_of_the_start_are_labelled_by_the_gold_and_kept(taught: Path) -> None:
    task, wanted = SortPairs(), PairsWanted(train=300, test=60)
    said: list[str] = []
    give_pairs(task, str(taught), wanted, said.append)
    again = SortPairs()
    give_pairs(again, str(taught), wanted, said.append)
    assert len(said) == 2 and again.fixed_pairs == task.fixed_pairs  # the second time they were read
    pairs = task.fixed_pairs["train"]
    assert len(pairs) == 300 and all(p["chosen"] != p["rejected"] for p in pairs)
    margins = torch.tensor([p["score_chosen"] - p["score_rejected"] for p in pairs])
    agreeing = float((margins > 0).float().sum() / (margins != 0).float().sum())
    # a Bradley-Terry judge agrees with the gold as often as sigmoid(|margin|) says
    expected = float(torch.sigmoid(margins[margins != 0].abs()).mean())
    assert agreeing == pytest.approx(expected, abs=0.08)
    trained = {"".join(sorted(p["prompt"][:-1])) for p in pairs}
    held = {"".join(sorted(p["prompt"][:-1])) for p in task.fixed_pairs["test"]}
    assert not trained & held


def test_a_task_without_any_label_is_told(taught: Path) -> None:
    task = DatasetTask([{"prompt": f"p{i}"} for i in range(20)], rewards=[])
    with pytest.raises(UserError, match="neither rewards nor a preference"):
        give_pairs(task, str(taught))
