"""Several responses to a prompt, in order or graded: the pairs that they say, and what says nothing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from polyrl.errors import UserError
from polyrl.tasks.language.left_out import LeftOut
from polyrl.tasks.language.preferences import PairDataset, dataset_task
from polyrl.tasks.language.rankings import pairs_of, ranked


def told(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["chosen"], row["rejected"]) for row in pairs_of(rows, "the data")]


def test_a_ranking_of_k_is_every_better_one_against_every_worse() -> None:
    found = told([{"prompt": "p", "responses": ["a", "b", "c", "d"]}])
    assert sorted(found) == sorted(combinations("abcd", 2)) and found[0] == ("a", "d")


def test_grades_say_the_order_and_equal_ones_say_nothing() -> None:
    rows = [{"prompt": "p", "responses": ["x", "y", "z"], "scores": [1, 5.5, 1], "id": 7}]
    found = pairs_of(rows, "the data")
    assert [(r["chosen"], r["rejected"]) for r in found] == [("y", "x"), ("y", "z")]
    first = {"prompt": "p", "id": 7, "chosen": "y", "rejected": "x", "score_chosen": 5.5, "score_rejected": 1.0}
    assert dict(found[0]) == first | {"ranked_row": 1, "chosen_rank": 0, "rejected_rank": 1}
    # brute force: of every two with different grades the better is chosen, once
    grades = [3.0, 1.0, 2.0, 2.0, -1.0]
    names = [f"r{i}" for i in range(5)]
    wanted = {(names[i], names[j]) for i in range(5) for j in range(5) if grades[i] > grades[j]}
    pairs = told([{"prompt": "p", "responses": names, "scores": grades}])
    assert set(pairs) == wanted and len(pairs) == len(wanted)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"responses": ["a"]}, "must be a list of two responses or more"),
        ({"responses": "ab"}, "must be a list of two responses or more"),
        ({"responses": ["a", "b"], "scores": [1]}, "a number for each of 2 responses"),
        ({"responses": ["a", "b"], "scores": [1, "2"]}, "a number for each of 2 responses"),
        ({"responses": ["a", "b"], "scores": [1, float("nan")]}, "a number for each of 2 responses"),
        ({"responses": ["a", "b"], "scores": [True, False]}, "a number for each of 2 responses"),
        ({"responses": ["a", "b"], "scores": [10**400, 1]}, "a number for each of 2 responses"),
        ({"responses": ["a", "b"], "scores": [2, 2]}, "all responses are equally good"),
        ({"responses": ["a", None]}, "response 2 of the column 'responses' is neither text nor a list of messages"),
        ({"responses": [1, "b"]}, "response 1 of the column 'responses' is neither text nor a list of messages"),
        ({"responses": ["a", "b", ""]}, "response 3 of the column 'responses' is empty"),
    ],
)
def test_bad_rows_are_told_by_their_place_or_counted(row: dict[str, Any], words: str) -> None:
    good = {"prompt": "p", "responses": ["a", "b"]}
    with pytest.raises(UserError, match=rf"the data, row 2: .*{words}"):
        pairs_of([good, {"prompt": "q", **row}], "the data")
    passed = LeftOut()
    assert len(pairs_of([good, {"prompt": "q", **row}], "the data", passed)) == 1 and len(passed) == 1


def test_a_file_of_rankings_is_preference_data(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}:", "responses": [f" one{i}", f" two{i}", f" three{i}"]} for i in range(30)]
    rows[3] |= {"scores": [0, 1, 2]}
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = dataset_task(file)
    assert isinstance(task, PairDataset)
    both = [*task.fixed_pairs["train"], *task.fixed_pairs["test"]]
    assert len(both) == 90 and {len({r["prompt"] for r in task.fixed_pairs[s]}) for s in ("train", "test")} != {30}
    assert not {r["prompt"] for r in task.fixed_pairs["train"]} & {r["prompt"] for r in task.fixed_pairs["test"]}
    third = {(r["chosen"], r["rejected"]) for r in both if r["prompt"] == "p3:"}
    assert third == {(" three3", " one3"), (" three3", " two3"), (" two3", " one3")}
    with pytest.raises(UserError, match=r"ranked.jsonl, row 1: .*equally good"):
        file.write_text('{"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}\n', encoding="utf-8")
        dataset_task(file)
    judged = dataset_task(rows[:20], test_data=rows[20:])
    assert len(judged.fixed_pairs["test"]) == 30


def test_pairs_and_other_data_are_no_rankings() -> None:
    assert not ranked([{"prompt": "p", "chosen": "a", "rejected": "b", "responses": ["a", "b"]}])
    assert not ranked([{"prompt": "p", "answer": "4", "responses": "none"}]) and not ranked(["text"])
