"""Tools with a state: one session for each response, isolation, replays, ends, reports, and turns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.tools import Turns, turns
from polyrl.pretrain.solutions import demonstration
from polyrl.rollout.language import Sampling
from polyrl.run_state.language import Evaluation, LanguageRunState
from polyrl.tasks.language import task
from polyrl.tasks.language.assistant import Assistance, ToolArithmetic
from polyrl.tasks.language.base import Counted, Reward, Row, Session, Tool, replayed, reports, sessions, tool_spans
from polyrl.tasks.language.calculator import Calculator, CalculatorTool
from polyrl.tasks.language.strings import Reverse
from run_states import TableRunState, make_context, token_batch
from tiny_models import save_model


class Ledger:
    """Answers each `a` with how many there have been; the `most`th ends the response."""

    stop = "a"

    def __init__(self, seen: list[str], most: int = 3):
        self.seen, self.most, self.ended = list(seen), most, False

    def reply(self, response: str) -> str | None:
        self.seen.append(response)
        self.ended = len(self.seen) >= self.most
        return f"<{len(self.seen)}>"

    def report(self) -> dict[str, Any]:
        return {"calls": len(self.seen), "last": self.seen[-1] if self.seen else ""}


@dataclass
class Counting(Reverse):
    """Words, with a tool; the reward and the verdict are made of what sessions report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_tokens = 90
        self.rewards = [Reward("calls", self.called)]

    def session(self, row: Row) -> Tool | None:
        return Ledger([])

    def called(self, prompts: Any, completions: Any, calls: Sequence[int], **columns: Any) -> list[float | None]:
        return [float(c) for c in calls]

    def correct(self, row: Row, completion: str) -> bool:
        return bool(row["calls"] > 1)

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        return {"called": row["calls"], "twice": float(row["calls"] > 1)}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that says a little of everything, the letter a now and then."""
    return save_model(tmp_path_factory.mktemp("letters"), "qwen3", initializer_range=0.15)


def run_state_of(made: Reverse, model: Path) -> LanguageRunState:
    return LanguageRunState(made, model, evaluation=Evaluation(prompts=30, greedy=False))


def sampled(run_state: LanguageRunState, seed: int = 0, prompts: int = 6) -> Any:
    rows = run_state.task.rows("train", 0, 0, prompts)
    stream = torch.Generator().manual_seed(seed)
    sampling = Sampling(max_tokens=run_state.task.max_tokens, temperature=1.5)
    return run_state.sample(rows, sampling, completions_per_prompt=20, greedy_baseline=True, generator=stream)


def test_every_response_has_a_session_of_its_own(letters: Path) -> None:
    batch = sampled(run_state_of(Counting(), letters))
    texts, calls = batch.columns["completion"], batch.columns["calls"]
    assert set(calls) == {0, 1, 2, 3}  # what the others said never counts
    for i, (text, n, last) in enumerate(zip(texts, calls, batch.columns["last"], strict=True)):
        present, mask = batch["present"][i], batch["mask"][i]
        length = int(present.sum())
        assert all(f"a<{k}>"[: length - text.find(f"a<{k}")] in text for k in range(1, n) if f"a<{k}>" in text)
        assert last == "" or text.startswith(last)
        if n == 3:  # the last call ends the response: nothing is inserted, nothing follows
            assert text.endswith("a") and bool(batch["ended"][i]) and text == last
            assert bool(mask[length - 1])
        forced = int((present & ~mask).sum())
        assert forced == 3 * min(n, 2) or length == 90  # replies are not the policy's


def test_sessions_see_the_same_again(letters: Path) -> None:
    """Replay: the same calls get the same replies, and the same random numbers the same responses."""
    run_state = run_state_of(Counting(), letters)
    batch, again = sampled(run_state), sampled(run_state)
    assert all(torch.equal(batch[name], again[name]) for name in batch.fields())
    assert batch.columns == again.columns
    ended = batch["ended"].tolist()
    for row, text, n, over in zip(
        batch.columns["prompt"], batch.columns["completion"], batch.columns["calls"], ended, strict=True
    ):
        session = replayed(run_state.task, {"prompt": row}, text)
        assert isinstance(session, Session)
        assert session.report()["calls"] == n or not over  # a reply that the limit cut may hide that it was one


def test_reports_reach_rewards_checker_and_measures(letters: Path) -> None:
    run_state = run_state_of(Counting(), letters)
    run_state.check_rows(
        run_state.task.rows("train", 0, 0, 3), 90
    )  # the reward's column is known before anything is sampled
    batch = sampled(run_state)
    assert run_state.score(batch)[0].tolist() == [float(c) for c in batch.columns["calls"]]
    metrics, _ = run_state.evaluate()
    assert metrics["eval/called"] == metrics["eval/reward"] > 0
    assert metrics["eval/accuracy"] == pytest.approx(metrics["eval/twice"]) and 0 < metrics["eval/twice"] < 1


def test_play_judges_by_what_sessions_report(
    letters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an evaluation does: the text alone would not tell."""
    from polyrl.cli import play_language

    run_state = run_state_of(Counting(), letters)
    monkeypatch.setattr(play_language, "open_policy", lambda *_, **__: run_state)
    monkeypatch.setenv("COLUMNS", "400")
    play_language.play(letters, prompts=30, temperature=1.0)
    said = capsys.readouterr().out
    rows = run_state.task.rows("test", 7, 0, 30)
    sampling, stream = Sampling(max_tokens=90), torch.Generator().manual_seed(0)
    batch = run_state.sample(rows, sampling, completions_per_prompt=1, generator=stream)
    right = [n > 1 for n in batch.columns["calls"]]
    assert said.count("  right\n") == sum(right) and said.count("  wrong, expected ") == len(right) - sum(right)
    assert 0 < sum(right) < 30


def test_continuations_go_on_with_sessions_that_know_what_was(letters: Path) -> None:
    run_state = run_state_of(Counting(), letters)
    batch = sampled(run_state)
    row = torch.tensor([i for i, n in enumerate(batch.columns["calls"]) if n == 2][:5])
    tokens = torch.tensor([batch.columns["completion"][i].index("<1>") + 3 for i in row.tolist()])
    found = run_state.continuations(
        batch,
        row,
        tokens,
        Sampling(max_tokens=90, temperature=1.5),
        count=8,
        generator=torch.Generator().manual_seed(1),
    )
    for text, n in zip(found.columns["completion"], found.columns["calls"], strict=True):
        assert text.count("a") >= n >= 1 and ("<2>" in text) <= (n >= 2)
    assert {1, 3} <= set(found.columns["calls"])


def test_without_a_tool_nothing_listens(letters: Path) -> None:
    made = Reverse()
    assert sessions(made, made.rows("train", 0, 0, 3), 2) is None and reports(None) == {}
    assert "calls" not in sampled(run_state_of(made, letters)).columns


def test_tools_for_all_for_prompts_and_for_responses(letters: Path) -> None:
    policy = LanguagePolicy.load(letters)

    def said(tools: Any) -> Any:
        return run_state_of(Counting(), letters).engine.generate(
            [policy.encode_prompt("ab="), policy.encode_prompt("c=")],
            Sampling(max_tokens=20, temperature=1.5),
            completions_per_prompt=10,
            generator=torch.Generator().manual_seed(0),
            tools=tools,
        )

    tool = Counted(CalculatorTool())
    assert torch.equal(said(tool)["action"], said([tool, tool])["action"])
    assert torch.equal(said(tool)["action"], said([tool] * 20)["action"])
    with pytest.raises(ValueError, match="3 tools for 2 prompts and 20 responses"):
        said([tool] * 3)


def test_a_tool_without_a_state_is_counted() -> None:
    made, text = Calculator(), "[1+2]=3;[3*x]=error;4] 5"
    session = replayed(made, made.rows("train", 0, 0, 1)[0], text)
    assert isinstance(session, Session) and session.report() == {"calls": 2}  # the failed one too; `4]` calls nothing

    class Broken(CalculatorTool):
        def reply(self, response: str) -> str | None:
            raise RuntimeError

    broken = Counted(Broken())
    with pytest.raises(RuntimeError):
        broken.reply("[1+1]")
    assert broken.calls == 1


# ------------------------------------------------------------------------------------------------------------ turns


def test_turns_are_parted_by_what_tools_say() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 1, 0, 0]]).bool()
    present = torch.tensor([[1] * 8, [1] * 3 + [0] * 5, [1] * 6 + [0] * 2]).bool()
    wanted = [[0, 0, 0, 0, 1, 1, 2, 2], [0] * 8, [0, 0, 0, 1, 1, 1, 0, 0]]
    assert turns(mask, present).tolist() == wanted
    wide = torch.nn.functional.pad(mask, (0, 3), value=True), torch.nn.functional.pad(present, (0, 3))
    assert turns(*wide)[:, :8].tolist() == wanted and not turns(*wide)[:, 8:].any()
    context = make_context(None)
    batch = token_batch(TableRunState())
    found = Turns()(batch, context)["turn"]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    assert torch.equal(Turns()(batch.rows(order), context)["turn"], found[order])
    assert context.metrics["turns/per_response"] == pytest.approx(float((found.amax(1) + 1).float().mean()))


# --------------------------------------------------------------------------------------------------- tool-arithmetic


def test_the_calls_that_questions_need() -> None:
    made = task("tool-arithmetic")
    assert isinstance(made, ToolArithmetic)
    rows = made.rows("train", 0, 0, 400)
    counts: dict[int, int] = {}
    for row in rows:
        session = replayed(made, row, made.worked(row))
        assert isinstance(session, Session) and session.report()["calls"] == row["minimum_calls"]
        counts[row["minimum_calls"]] = counts.get(row["minimum_calls"], 0) + 1
        shown = made.demonstrated(row)
        more = replayed(made, row, shown)
        assert isinstance(more, Session) and not more.ended and made.correct(row, shown)
        assert more.report()["calls"] == row["minimum_calls"] + len(row["needless"]) and "error" not in shown
        assert made.measures(row, shown) == {"tool_calls": more.report()["calls"]}
        assert made.measures({**row, "calls": 7}, shown) == {"tool_calls": 7.0}  # what was counted is believed
    assert all(100 < n < 170 for n in counts.values()) and len(counts) == 3
    assert {len(row["needless"]) for row in rows} == {0, 1, 2}


def test_the_tools_of_tool_arithmetic() -> None:
    tools = Assistance({"a": 57})
    assert [tools.reply(t) for t in ("[a]", "[57*3]", "x]", "[b]")] == ["=57;", "=171;", "=error;", "=error;"]
    assert tools.report() == {"calls": 4} and not tools.ended
    assert tools.reply("[a]") is None and tools.ended
    table = {"a": 1}
    first, second = Assistance(table), Assistance(table)
    first.table["a"] = 2
    first.reply("[a]")
    assert table == second.table == {"a": 1} and second.calls == 0


def test_the_summary_of_tool_arithmetic() -> None:
    made = task("tool-arithmetic")
    rows = [{"answer": "5", "minimum_calls": n, "calls": m} for n, m in ((0, 1), (1, 1), (2, 4), (2, 0))]
    found = made.summary(rows, ["5", "5", "4", "[x]=5;5"])
    assert found["tool_productivity"] == pytest.approx(3 / 6) and found["needless_calls"] == pytest.approx(1)
    assert (found["accuracy/2"], found["tool_calls/2"], found["tool_calls/0"]) == (0.5, 2.0, 1.0)


def test_replies_are_read_and_not_learned_and_an_end_needs_no_token(letters: Path) -> None:
    policy, made = LanguagePolicy.load(letters), task("tool-arithmetic")
    row = next(r for r in made.rows("train", 0, 0, 50) if r["kind"] == "chain")
    _, ids, learned = demonstration(policy, made, row)
    text = made.demonstrated(row)
    assert policy.decode(ids) == text and ids[-1] == policy.tokenizer.eos_token_id
    told = "".join(text[a:b] for a, b in tool_spans(made.session(row), text))
    assert policy.decode([t for t, own in zip(ids, learned, strict=True) if not own]) == told and "=" in told
    assert copy.deepcopy(row) == row  # sessions have left the row's table alone


@pytest.mark.parametrize("setting", [{"difficulty": 1}, {"difficulty": 5}, {"start_accuracy": 2}])
def test_bad_settings_are_told(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="tool-arithmetic"):
        task("tool-arithmetic", **setting)
