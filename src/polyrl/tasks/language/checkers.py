"""Checkers: what the right answer is that a column holds, and whether a completion agrees with it.

A column can hold text, a number, messages, or several answers of which any is right: a list (nq_open), or an object
with `value` and `aliases` (TriviaQA) or `text` (SQuAD). Nothing, blank text and NaN are no answer. Each answer is
judged by what it is, so one odd answer never changes how the others are judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from polyrl.tasks.language.base import content
from polyrl.tasks.language.math_process import check_installed, same_mathematics
from polyrl.tasks.language.phrases import shortened

TRUTH_COLUMNS = ("answer", "solution", "completion")
"""Columns that can hold the right answer; the first one that is there counts."""

ALTERNATIVES = (("value", "aliases", "normalized_value", "normalized_aliases"), ("text",))
"""Keys of objects that hold several right answers: TriviaQA's and SQuAD's."""
BESIDE = ("answer_start", "type", "matched_wiki_entity_name", "normalized_matched_wiki_entity_name")
"""Keys that such objects have too, and that hold no answer."""


def truth_column(columns: Sequence[str] | Mapping[str, Any]) -> str | None:
    """Return the name of the column that holds the right answer, or None."""
    return next((name for name in TRUTH_COLUMNS if name in columns), None)


# ---------------------------------------------------------------------------------------------------------------------
# What the answer is
# ---------------------------------------------------------------------------------------------------------------------


def accepted(truth: Any) -> list[str]:
    """Return the texts of which any is the right answer; none where there is no answer.

    Raises `ValueError` with a phrase on what the value is, where it can be no answer.
    """
    if type(truth).__module__ == "numpy":  # which is not imported here
        truth = truth.tolist()
    if truth is None or type(truth).__name__ in ("NAType", "NaTType") or truth != truth:  # NaN is no truth
        return []
    if isinstance(truth, bool):
        return [str(truth), str(truth).lower()]
    if isinstance(truth, str):
        return [truth] if truth.strip() else []
    if isinstance(truth, int | float | Decimal | Fraction):
        return [_digits(truth)]
    if isinstance(truth, Mapping):
        return _of_object(truth)
    if isinstance(truth, list | tuple | set | frozenset):
        items = [*truth]
        if items and all(isinstance(item, Mapping) and "content" in item for item in items):
            text = content(items)
            return [text] if text.strip() else []
        if nested := [item for item in items if isinstance(item, list | tuple | set | Mapping)]:
            raise ValueError(f"a list that holds {'an object' if isinstance(nested[0], Mapping) else 'a list'}")
        return list(dict.fromkeys(text for item in items for text in accepted(item)))
    raise ValueError(f"of the type {type(truth).__name__}")


def _of_object(truth: Mapping[str, Any]) -> list[str]:
    if isinstance(truth.get("content"), str):
        return accepted(truth["content"])
    for keys in ALTERNATIVES:
        if any(key in truth for key in keys) and set(truth) <= {*keys, *BESIDE}:
            return list(dict.fromkeys(text for key in keys for text in accepted(truth.get(key))))
    raise ValueError(f"an object with {', '.join(map(str, truth)) or 'nothing in it'}")


def _digits(number: int | float | Decimal | Fraction) -> str:
    try:
        return str(number)
    except ValueError:  # thousands of digits, more than Python turns into text at once
        return str(Decimal(int(number)))


def truth_text(truth: Any) -> str:
    """Return the right answer as one text, the first of several."""
    try:
        texts = accepted(truth)
    except ValueError:
        return str(truth)
    return texts[0] if texts else ""


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------

# A minus is a sign unless something stands before it that it could be subtracted from. A fraction is no part of a date
# or a path, and a mixed number (2 1/2) has a proper one.
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])[-\u2212])? \$?
        (?: (?<!/)(?:(?P<whole>\d{1,3})[ ])?(?P<over>\d+)/(?P<under>0*[1-9]\d*)(?![\w/]|\.\d)
          | (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? | \.\d+)
            (?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))? )
        (?P<percent>\s?\\?%)?""",
    re.ASCII | re.VERBOSE,
)
_FRACTION = re.compile(r"(?P<before>\d)?\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")


def _final(text: str) -> str:
    """Return what counts of a text: what follows GSM8K's `####`, or stands in the last LaTeX box, in plain signs."""
    text = text.rpartition("####")[2]
    if "\\" in text or "{,}" in text:
        text = _boxed(text).replace("{,}", ",").replace("\\!", "").replace("\\$", "$")
        text = _FRACTION.sub(lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2] or m[4]}/{m[3] or m[5]}", text)
    return text


def _boxed(text: str) -> str:
    """Return what stands in the last `\\boxed{...}`; the text as it is where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start:]


def _value(found: re.Match[str]) -> Decimal | Fraction:
    if found["digits"] is not None:
        value: Decimal | Fraction = Decimal(found["digits"].replace(",", "") + f"e{found['exponent'] or 0}")
    else:
        value = Fraction(Decimal(found["over"])) / Fraction(Decimal(found["under"]))
        if found["whole"] and value < 1:
            value += int(found["whole"])
    return -value if found["sign"] else value


def last_number(text: str) -> Decimal | Fraction | None:
    """Return the last number of `text`, or None if there is none.

    Reads `1,234.50`, `$-5`, `-$5`, `18.`, `3e8`, `1/2`, `2 1/2`, `\\frac{1}{2}` and `50%` (as 50). After GSM8K's mark
    of the answer, `####`, only what follows counts, and of LaTeX only what stands in the last `\\boxed{}`.
    """
    found = list(_NUMBER.finditer(_final(text)))
    return _value(found[-1]) if found else None


def is_number(answer: str) -> bool:
    """Return whether the text, or what follows its last `####`, is one number and nothing else."""
    return _whole_number(answer) is not None


def _whole_number(answer: str) -> re.Match[str] | None:
    final = _final(answer).strip()
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(final) > 2 and final.startswith(opening) and final.endswith(closing):
            final = final.removeprefix(opening).removesuffix(closing).strip()
    final = final.removesuffix(".").removeprefix("+")
    return _NUMBER.fullmatch(final.removeprefix("$") if final.startswith("$-") else final)


def same_number(completion: str, answer: str) -> bool:
    """Return whether the last numbers of both texts are equal: `18`, `18.0` and `$18` are, `1/2` and `0.5` are.

    Where one of them alone is a percentage, either reading is right: `50%` is 50 without its unit, and is 0.5.
    """
    found = [list(_NUMBER.finditer(_final(text))) for text in (answer, completion)]
    if whole := _whole_number(answer):
        found[0] = [whole]
    if not found[0]:
        raise ValueError(f"the answer {shortened(answer)} holds no number")
    if not found[1]:
        return False
    (truth, share), (given, said) = ((Fraction(_value(f[-1])), f[-1]["percent"] is not None) for f in found)
    if share == said or truth == given:
        return truth == given
    return given == truth / 100 if share else given / 100 == truth


# ---------------------------------------------------------------------------------------------------------------------
# Ways to compare
# ---------------------------------------------------------------------------------------------------------------------


def same_text(completion: str, answer: str) -> bool:
    """Return whether both texts are equal but for the space around them."""
    return completion.strip() == answer.strip()


def contains_text(completion: str, answer: str) -> bool:
    """Return whether the answer stands somewhere in the completion."""
    return answer.strip() in completion


def same_answer(completion: str, answer: str) -> bool:
    """Return whether both are the same number, where the answer is one; else whether they are the same text."""
    return same_number(completion, answer) if is_number(answer) else same_text(completion, answer)


def same_expression(completion: str, answer: str) -> bool:
    """Return whether math-verify finds both the same; numbers that it does not read (`3e8`) are compared as numbers."""
    whole = _whole_number(answer)
    if whole and (whole["exponent"] is not None or is_number(completion)):
        check_installed()
        return same_number(completion, answer)
    return same_mathematics(completion, answer)


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "auto": same_answer,
    "numeric": same_number,
    "exact": same_text,
    "contains": contains_text,
    "math": same_expression,
}
"""Ways to compare a completion with a right answer: `checker(completion, answer)`."""


def agrees(checker: str, completion: str, answers: Sequence[str]) -> bool:
    """Return whether the completion agrees with any of the answers."""
    return any(CHECKERS[checker](completion, answer) for answer in answers)


def unfit(checker: str, answers: Sequence[str]) -> str | None:
    """Return, in a phrase, what is wrong with answers that the checker cannot compare with; None where nothing is."""
    if checker == "numeric":
        for answer in answers:
            if last_number(answer) is None:
                return f"{shortened(answer)} holds no number"
    return None
