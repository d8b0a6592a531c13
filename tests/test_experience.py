"""The table that flows: rows, fields, columns, and that nothing changes behind one's back."""

from __future__ import annotations

import pytest
import torch

from polyrl.core.experience import Experience


def table() -> Experience:
    return Experience({"score": torch.arange(4.0), "mask": torch.ones(4, 3, dtype=torch.bool)}, {"text": list("abcd")})


def test_rows_take_tensors_and_columns_in_the_order_asked() -> None:
    for index in ([3, 0, 3], torch.tensor([3, 0, 3])):
        rows = table().rows(index)
        assert rows["score"].tolist() == [3.0, 0.0, 3.0]
        assert rows.columns["text"] == ["d", "a", "d"]
        assert len(rows) == 3 and rows["mask"].shape == (3, 3)


def test_no_rows_is_an_empty_table() -> None:
    assert len(table().rows([])) == 0 and table().rows([]).columns["text"] == []


def test_with_fields_leaves_the_old_table_as_it_was() -> None:
    old = table()
    new = old.with_fields(score=torch.zeros(4), value=torch.ones(4, 3))
    assert "value" in new and "value" not in old
    assert old["score"].tolist() == [0, 1, 2, 3] and new["score"].tolist() == [0, 0, 0, 0]
    assert new.columns["text"] == list("abcd")
    assert new["mask"].data_ptr() == old["mask"].data_ptr()  # shared, not copied


def test_with_columns_adds_and_replaces() -> None:
    old = table()
    new = old.with_columns(text=list("wxyz"), more=[1, 2, 3, 4])
    assert new.columns == {"text": list("wxyz"), "more": [1, 2, 3, 4]} and old.columns == {"text": list("abcd")}


def test_rows_of_the_task_follow_their_rows_and_share_no_name_with_columns() -> None:
    asked = [{"text": n, "self": -n} for n in range(4)]
    made = table().answering(asked)
    for new in (made, made.with_fields(score=torch.zeros(4)), made.with_columns(more=[1, 2, 3, 4]), made.to("cpu")):
        assert new.columns["text"] == list("abcd") and new.task_column("text") == [0, 1, 2, 3]
    taken = made.rows([3, 0, 3])
    assert taken.columns["text"] == ["d", "a", "d"] and taken.task_column("self") == [-3, 0, -3]
    assert made.task_column("more") is None and table().task_column("text") is None
    assert table().with_columns(self=[1, 2, 3, 4]).columns["self"] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="2 rows of the task for 4 rows"):
        table().answering(asked[:2])


def test_a_missing_field_is_named_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="no field 'advantage'; it has mask, score"):
        table()["advantage"]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="column 'text' has 2 values for 4 rows"):
        table().with_columns(text=["a", "b"])
    with pytest.raises(ValueError, match=r"has \d rows, not \d"):
        table().with_fields(score=torch.zeros(3))
