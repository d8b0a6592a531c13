"""`polyrl show` and `polyrl trace` in every domain: the policy, the five stages in order, and a few real rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console, RenderableType
from rich.text import Text

from chat_tokenizers import LOOP, THINKS, byte_tokenizer, user
from chat_tokenizers import Text as Reads
from chat_tokenizers import said as answered
from conftest import Command
from polyrl import catalogue
from polyrl.cli import excerpts, responses, tokens, update_lists
from polyrl.cli.fields import field_table, value_range
from polyrl.cli.trace import counted, metric_words, whats_new
from polyrl.core.experience import Experience
from polyrl.core.fields import FIELDS
from polyrl.data.base import Rows
from polyrl.models.language.rows import pad_rows
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig

STAGES = ["COLLECT", "SCORE", "CREDIT", "SELECT", "IMPROVE"]


def text(block: RenderableType | None) -> str:
    assert block is not None
    console = Console(width=140)
    with console.capture() as said:
        console.print(block)
    return said.get()


def row(said: str, name: str) -> list[str]:
    """Cells of the first line that begins with `name`."""
    return next(line.split()[1:] for line in said.splitlines() if line.split()[:1] == [name])


# ------------------------------------------------------------------------------------------------------- excerpts


def test_two_episodes_are_shown_step_by_step() -> None:
    reward = torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0], [-2.0, 0.5, 0.0]])
    experience = Experience(
        {
            "observation": torch.arange(36.0).reshape(3, 3, 4),
            "action": torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]]),
            "reward": reward,
            "mask": torch.ones(3, 3, dtype=torch.bool),
            "terminated": torch.tensor([[False] * 3, [False, False, True], [False] * 3]),
            "score": reward.sum(1),
        }
    )
    said = text(excerpts.steps(experience))
    assert "2 of 3 rows" in said and "row 1" in said and "row 2" in said and "row 0" not in said  # best and worst
    assert row(said, "reward") == ["5", "5", "5"] and row(said, "action") == ["1", "1", "1"]
    assert row(said, "terminated") == ["-", "-", "yes"] and said.count("terminated") == 1  # not where nothing ended
    assert row(said, "observation")[:3] == ["12", "13", ".."]
    assert "mask" not in said and "score" not in said
    first = [line.split()[0] for line in said.splitlines()[2:6]]
    assert first == ["observation", "action", "reward", "terminated"]  # what was seen, done, and came of it


def test_episodes_of_one_step_are_rows() -> None:
    said = text(
        excerpts.steps(
            Experience(
                {
                    "action": torch.arange(20)[:, None],
                    "mask": torch.ones(20, 1, dtype=torch.bool),
                    "score": torch.linspace(0, 1, 20),
                }
            )
        )
    )
    assert "the first rows of 20, one step each" in said
    assert row(said, "action") == ["score"] and len(said.strip().splitlines()) == 2 + excerpts.MOST_STEPS


def test_long_episodes_and_fields_asked_for() -> None:
    experience = Experience(
        {"action": torch.zeros(1, 50, 1), "advantage": torch.full((1, 50), -0.5), "reward": torch.zeros(1, 50)}
    )
    said = text(excerpts.steps(experience, ("advantage", "value"), "what pushes"))
    assert row(said, "advantage") == ["-0.50"] * excerpts.MOST_STEPS and "reward" not in said and "what pushes:" in said
    assert "of the one row" not in said and "(of 50) of the one row" in text(excerpts.steps(experience))
    assert excerpts.steps(Experience({"initial_inventory": torch.zeros(2, 1, 3)})) is None


class _Shifted:
    """A policy that has moved by a known amount from the reference."""

    def __init__(self, shift: torch.Tensor):
        self.shift = shift

    def outputs(self, experience: Experience, wants: frozenset[str]) -> dict[str, torch.Tensor]:
        assert wants == {"logprob"}
        return {"logprob": experience["ref_logprob"] + self.shift[experience["row"]][:, None]}


def test_pairs_are_shown_with_their_log_ratios() -> None:
    mask = torch.tensor([[True, True, False]] * 4)
    experience = Experience(
        {
            "action": torch.zeros(4, 3, dtype=torch.int64),
            "row": torch.arange(4),
            "mask": mask,
            "pair": torch.tensor([7, 3, 7, -1]),
            "preferred": torch.tensor([False, True, True, False]),
            "ref_logprob": torch.full((4, 3), -1.0),
        },
        {"prompt": ["a"] * 4, "completion": ["bad\nend", "lonely", "[b]good[/b]", "none"]},
    )
    assert excerpts.some_pairs(experience) == [(2, 0)]  # a pair that lacks a half is left out, and so is no pair
    before = excerpts.log_ratios(experience, _Shifted(torch.zeros(4)))
    after = excerpts.log_ratios(experience, _Shifted(torch.tensor([-0.5, 0.0, 0.25, 9.0])))
    assert before == {2: 0.0, 0: 0.0} and after == {2: 0.5, 0: -1.0}  # two tokens each: padding does not count
    said = text(excerpts.preference_pairs(experience, before, after))
    assert row(said, "chosen") == ["+0.0000", "+0.5000", "[b]good[/b]"]
    assert row(said, "rejected") == ["+0.0000", "-1.0000", r"bad\nend"]
    assert row(said, "h")[:2] == ["+0.0000", "+1.5000"]
    plain = text(excerpts.preference_pairs(experience))
    assert "rho" not in plain and "[b]good[/b]" in plain


# ----------------------------------------------------------------------------------------------------- the commands


def stages_told(words: list[str]) -> list[tuple[int, str]]:
    """The stages that are shown, with their numbers: beside a list of updates those that have parts."""
    every = [*enumerate(STAGES, 1)]
    return [(i, stage) for i, stage in every if stage != "SCORE" and stage != "CREDIT"] if "MODELS" in words else every


@pytest.mark.parametrize(
    ("method", "task", "words"),
    [
        ("ppo", "CartPole-v1", ["POLICY", "--hidden", "64x64"]),
        ("hdpo", "lost-sales", ["MODELS", "is judged", "32x32x32"]),
        ("dr-rpo", "linear-mdp", ["regularized-softmax"]),
    ],
)
def test_show_has_the_policy_before_the_first_stage(
    method: str, task: str, words: list[str], polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("show", method, "--task", task)
    assert told.code == 0 and told.err == ""
    for word in words:
        assert word in told.out, word
    order = [told.out.index(f"{i} {stage}") for i, stage in stages_told(words)]
    assert order == sorted(order)
    if words[0] in ("POLICY", "MODELS"):
        assert told.out.index(words[0]) < order[0]
    else:
        assert "POLICY" not in told.out


@pytest.mark.parametrize(
    ("line", "words", "norms"),
    [
        (
            ["ppo", "--task", "CartPole-v1", "--steps-per-environment", 16],
            ["POLICY", "an untrained policy", "observation", "advantage", "of steps had left the clip range"],
            ["policy and critic together"],
        ),
        (
            ["hdpo", "--scenarios", 16, "--periods", 6],
            ["MODELS", "demand", "learning_rate=0.003", "once over the fresh rows", "gradient norm"],
            [],
        ),
        (
            ["reinforce", "--scenarios", 16, "--periods", 6],
            ["MODELS", "what each step will be pushed by", "behaviour_logprob", "gradient norm"],
            [],
        ),
        (["dr-rpo"], ["next_state", "bonus", "regularized-softmax", "eta=none", "Suboptimality"], []),
        (["nash-mp"], ["one step each", "score", "mirror-prox", "prox_steps=two"], []),
    ],
)
def test_trace_explains_an_iteration_of_every_domain(
    line: list[object],
    words: list[str],
    norms: list[str],
    polyrl: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("trace", *line)
    assert told.code == 0 and told.err == ""
    for word in words:
        assert word in told.out, word
    order = [told.out.index(f"{i} {stage}") for i, stage in stages_told(words)]
    assert order == sorted(order)  # stages without parts stand in their place, too
    assert "; ;" not in told.out and "nan" not in told.out
    said = re.search(r"gradient norm (.+) \(clipped", told.out)
    assert [whose for whose, _ in norms_said(said)] == norms
    assert all(float(size) > 0 for _, size in norms_said(said))
    assert list(tmp_path.iterdir()) == []  # a trace writes nothing


def test_a_source_that_logs_nothing_is_told_in_words(
    polyrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("trace", "bq-nco", "--task", "tsp(n=5)", "--solved", 10, "--eval-episodes", 4, "--turns", 1)
    assert told.code == 0, told.err
    improve = told.out[told.out.index("5 IMPROVE") :]
    assert "solutions: 10 good tours of 5 nodes, of which random parts are drawn" in improve
    silent = _Silent()
    recipe = catalogue.build("bq-nco")
    lines = update_lists.traced(recipe, None, {"solutions": silent}, {})
    assert next(lines)[0].plain.startswith("solutions: Sub-problems cut from good solutions")


class _Silent(Rows):
    """Rows that say nothing of themselves."""

    def ready(self) -> bool:
        return True

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("am+multi-start", "policy. multi-start: Build several solutions of each instance"),
        ("sac+mixture", "entropy-target. mixture: Let several Gaussians act instead of one"),
        ("rlpd+pmoe", "mixture: Let several Gaussians act instead of one"),
    ],
)
def test_a_composition_says_what_it_changes(
    spec: str, said: str, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert said in polyrl("show", spec).out


def norms_said(line: re.Match[str] | None) -> list[tuple[str, str]]:
    """Whose gradient norms a trace names, and what it says that they are."""
    found = [] if line is None else re.findall(r"([-\d.e]+) of (?:the )?(policy and critic together|\w+)", line[1])
    return [(whose, size) for size, whose in found]


def test_the_gradient_norms_of_a_trace_are_those_of_the_iteration(
    polyrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    line = ["ppo", "--task", "CartPole-v1", "--steps-per-environment", 16, "--joint-clip", "false"]
    told = norms_said(re.search(r"gradient norm (.+) \(clipped", polyrl("trace", *line).out))
    settings = {"steps_per_environment": "16", "joint_clip": "false"}
    loop = make_loop(RunConfig(method="ppo", task="CartPole-v1", hyperparameters=settings))[0]
    loop.iterate()
    metrics = loop.context.metrics
    assert told == [(name, f"{metrics[f'grad_norm/{name}']:.3g}") for name in ("policy", "critic")]


# -------------------------------------------------------------------------------------------------- what a part did


class _Letters:
    """Reads token 1 as a, 2 as b, ..."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(chr(96 + i) for i in ids)


def responses_of(groups: list[int], scores: list[float], length: int = 4, **fields: torch.Tensor) -> Experience:
    """Responses a, b, ... of equal length with scores, two words of the task each."""
    count = len(groups)
    ones = torch.ones(count, length, dtype=torch.bool)
    return Experience(
        {
            "action": torch.arange(1, count + 1)[:, None].expand(count, length).clone(),
            "mask": ones,
            "present": ones,
            "group": torch.tensor(groups),
            "greedy": torch.zeros(count, dtype=torch.bool),
            "score": torch.tensor(scores),
            "weight": ones.float(),
            **fields,
        },
        {
            "prompt": [f"prompt {g}" for g in groups],
            "completion": [chr(97 + i) * length for i in range(count)],
            "calls": list(range(count)),
            "answer": [f"right{g}" for g in groups],
        },
    )


def test_what_was_there_before_stands_below_what_is_there_now() -> None:
    before = responses_of([0, 0, 0, 0], [-4.0, 1.0, 2.0, 0.5])
    after = before.with_fields(score=torch.tensor([-0.8, 0.8, 0.8, 0.5 + 1e-8]))
    said = text(field_table(before, after, ["score"], FIELDS, 140))
    assert row(said, "score")[3:6] == ["-0.8", "0.325", "0.8"]
    assert row(said, "before")[:3] == ["-4", "-0.125", "2"] and "differs in 3 of 4 rows" in said  # rounding is none
    weight = before["weight"].clone()
    weight[1, 2:] = 0
    weight[3] = 0
    masked = before.with_fields(weight=weight)
    narrow = text(field_table(before, masked, ["weight"], FIELDS, 80))
    assert "before (differs in 6 of 16 steps)  min 1  mean 1  max 1" in narrow
    assert "weight  how much each step counts" in narrow and "min 0  mean 0.625  max 1" in narrow
    said = counted(masked, before, "language")
    assert said.startswith("what counts for the policy: 10 of 16 tokens, in 3 of 4 responses (6 tokens were left out")
    told = counted(masked.with_fields(value_weight=before["weight"]), None, "control")
    assert "10 of 16 steps, in 3 of 4 rows; for the critic: 16 of 16 steps, in 4 of 4 rows" in told


def test_ranges_of_indices_and_of_unfinished_responses() -> None:
    batch = responses_of([7, 7, 9, 9], [0.0, 1.0, 0.0, 0.0], finished=torch.tensor([True, True, False, False]))
    assert value_range(batch, "group", FIELDS["group"]) == ("", "2 different", "")
    assert value_range(batch, "action", FIELDS["action"]) == ("", "", "")  # token ids have no mean
    assert value_range(batch, "score", FIELDS["score"]) == ("0", "0.5", "1")  # what goes on has none yet
    copies = batch.with_fields(copies=torch.tensor([1, 2, 3, 2]))
    assert value_range(copies, "copies", None) == ("1", "2", "3")


def test_metrics_are_told_in_words() -> None:
    assert metric_words("language", "score/clipped", 0.398) == "Clipped scores 39.8% of responses"
    assert metric_words("language", "capo/rejected", 0.03) == "Rejected by CAPO 3% of tokens"
    assert metric_words("control", "advice/weight", 0.372) == "Weight of the advice 37.2%"
    assert metric_words("language", "continuations/tokens", 38412.0).split()[-4] == "38,412"
    assert metric_words("language", "kl", -6e-9).startswith("KL to the start 0 ")  # rounding, not a negative KL


def test_the_example_is_kept_until_a_part_does_what_it_does_not_show() -> None:
    scores = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    first = responses_of([0, 0, 1, 1, 2, 2], scores)
    example = responses.Example()
    assert not example.follow(None, first, ["score"]) and example.rows(first) == [2, 3]  # where scores differ
    weight = first["weight"].clone()
    weight[3, 0] = 0
    seen = first.with_fields(weight=weight)
    assert not example.follow(first, seen, ["weight"]) and example.rows(seen) == [2, 3]  # it shows what was done
    reward = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.3])
    charged = seen.with_fields(score=reward)
    assert example.follow(seen, charged, ["score"]) and 5 in example.rows(charged)  # it does not
    assert example.rows(charged.rows([0, 1])) == []


def test_of_single_responses_those_are_shown_that_differ() -> None:
    scores = [0.1 * i for i in range(8)]
    batch = responses_of(list(range(8)), scores)
    example = responses.Example()
    example.follow(None, batch, ["score"])
    assert {0, 7} <= set(example.rows(batch)) and len(example.rows(batch)) == responses.MOST_ROWS
    said = text(responses.completions(batch, example.rows(batch), "scored", ["score"]))
    assert "prompt 7" in said and "hhhh" in said and "0.70" in said and "right7" in said


def test_greedy_twins_stand_below_the_responses_to_their_prompt() -> None:
    twin = torch.tensor([False, True] * 4)
    batch = responses_of([0, 0, 1, 1, 2, 2, 3, 3], [0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 0.2, 0.2], greedy=twin)
    batch = batch.with_fields(advantage=batch["score"][:, None].expand(8, 4).clone())
    example = responses.Example()
    example.follow(None, batch, ["score"])
    shown = example.rows(batch)
    assert [bool(twin[i]) for i in shown] == [False, True, False, True]
    assert all(shown[k + 1] == shown[k] + 1 for k in (0, 2))
    said = text(tokens.token_table(batch, None, shown, ["advantage"], _Letters(), ()))
    assert not {chr(97 + i) for i in range(8) if twin[i]} & {*row(said, "action")}  # they are not trained


def test_responses_stand_with_what_changed_and_what_the_task_says() -> None:
    before = responses_of([0, 0], [1.0, 1.0], finished=torch.tensor([True, False]))
    after = before.with_fields(score=torch.tensor([0.5, 1.0]), member_score=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    said = text(responses.completions(after, [0, 1], "scored", ["score", "member_score"], before))
    assert "scored: prompt 0  (answer right0)" in said  # what all rows share is said once
    lines = [line.split() for line in said.splitlines() if line.split()[:1] == ["sample"]]
    assert lines[0] == ["sample", "1.00", "0.50", "1.00", "2.00", "0", "aaaa"]
    assert lines[1] == ["sample", "not", "yet", "not", "yet", "3.00", "4.00", "1", "bbbb"]  # unfinished: no score


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ([user("hi ?")], r"<|start|>user\nhi ?<|end|>\n<|start|>assistant\n<think>\n"),
        ([user("hi"), answered("no , <tool_call>")], r"<|start|>user\nhi<|end|>\n<|start|>assistant\nno , <tool_call>"),
        ("2 + 2 =", "<s>2 + 2 ="),
    ],
    ids=["conversation", "begun answer", "text"],
)
def test_prompts_are_shown_as_the_model_reads_them(prompt: Any, read: str) -> None:
    reader = Reads(byte_tokenizer(adds="start", template=LOOP + THINKS))
    ids, mask = pad_rows([reader.encode_prompt(prompt), reader.encode_prompt("a longer prompt " * 5)], 0, "left")
    batch = responses_of([0, 1], [0.0, 1.0], prompt_ids=ids, prompt_mask=mask)
    batch = batch.with_columns(prompt=[prompt, "a longer prompt"])
    shown = text(responses.completions(batch, [0], "scored", tokenizer=reader.tokenizer))
    assert f"scored: {read}" in shown and "<pad>" not in shown
    pair = {"pair": torch.zeros(2, dtype=torch.long), "preferred": torch.tensor([True, False])}
    shown = text(excerpts.preference_pairs(batch.with_fields(**pair), tokenizer=reader.tokenizer))
    assert read in shown and "role" not in shown


def test_responses_without_a_text_are_shown_as_the_model_writes_them() -> None:
    reader = Reads(byte_tokenizer())
    ids, mask = pad_rows([reader.encode(t) for t in ("<think>a , b</think></s>", "no</s>")], 0, "right")
    pair = {"pair": torch.zeros(2, dtype=torch.long), "preferred": torch.tensor([True, False])}
    batch = Experience({"action": ids, "mask": mask, **pair})
    shown = text(excerpts.preference_pairs(batch, tokenizer=reader.tokenizer))
    assert row(shown, "chosen") == ["<think>a", ",", "b</think></s>"] and row(shown, "rejected") == ["no</s>"]


def test_rows_that_were_drawn_are_counted() -> None:
    before = responses_of([0, 0, 0, 1], [0.2, 0.9, 0.1, 0.0])
    after = before.rows([1, 1, 0, 1])
    sentence, table = responses.drawn(before, after, [0, 1, 2])
    assert sentence == "4 rows, where there were 4: 2 of the 4 different ones are left, the commonest 3 times"
    cells = [line.split() for line in text(table).splitlines()[2:5]]
    assert cells == [["3", "0.90", "bbbb"], ["1", "0.20", "aaaa"], ["0", "0.10", "cccc"]]  # best first


def test_tokens_are_shown_with_what_a_part_read_and_gave() -> None:
    before = responses_of([0, 0], [0.0, 1.0], length=30)
    entropy = torch.full((2, 30), 0.01)
    entropy[1, 15] = 0.87
    weight = torch.ones(2, 30)
    weight[1, 15] = 0
    before = before.with_fields(entropy_at_collection=entropy, advantage=torch.ones(2, 30))
    after = before.with_fields(weight=weight)
    said = text(
        tokens.token_table(
            after, before, [0, 1], ["entropy_at_collection", "weight"], _Letters(), {"entropy_at_collection"}, "x:"
        )
    )
    last = said.rindex("action")
    assert "b" in said[last:] and "0.87" in said[last:] and "..." in said[last:]  # around the change, in the middle
    assert "0" in [c for line in said[last:].splitlines() if line.split()[:1] == ["weight"] for c in line.split()[1:]]
    present = torch.ones(2, 30, dtype=torch.bool)
    mask = present.clone()
    mask[:, 2:5] = False  # what a tool said
    tool = before.with_fields(mask=mask, present=present).rows([0, 1])
    line = text(tokens.token_table(tool, None, [0], ["advantage"], _Letters(), ())).splitlines()
    assert row("\n".join(line), "action")[:8] == ["a"] * 8
    assert row("\n".join(line), "advantage").count("+1.00") == row("\n".join(line), "action").count("a") - 3


def test_a_table_of_tokens_is_broken_where_the_terminal_ends() -> None:
    lines = [("action", [Text("x")] * 20), ("advantage", [Text("+0.25")] * 20)]
    console = Console(width=80)
    with console.capture() as said:
        console.print(tokens.TokenTable(lines))
    found = said.get().splitlines()
    assert max(map(len, found)) <= 80 and said.get().count("+0.25") == 20
    assert [line.count("+0.25") for line in found if "+0.25" in line] == [10, 10]  # rounds of equal length


def test_probabilities_are_shown_by_the_largest() -> None:
    advice = torch.tensor([[[0.1, 0.7, 0.2]] * 3])
    batch = Experience({"action": torch.zeros(1, 3, dtype=torch.int64), "advice": advice})
    assert row(text(excerpts.steps(batch)), "advice") == ["1:", "0.70"] * 3


def test_what_is_new_in_a_method_is_said_by_stage() -> None:
    assert whats_new(catalogue.build("d3s")) == "select (varied-rollouts, telling-tokens)"
    assert whats_new(catalogue.build("aihf")).startswith("collect (demonstrated-prompts); score (learned-reward, ")
    assert "improve (joint-improvement)" in whats_new(catalogue.build("aihf"))


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[31mred", "\x07", "a\tb"])
def test_texts_of_any_kind_stay_one_line_and_command_no_terminal(text: str) -> None:
    shown = responses.escaped(text)
    assert shown.isprintable() and shown != text and shown.count("\\") == 1
