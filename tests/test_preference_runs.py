"""Runs of preference methods: they learn, resume to the same bit, ask the reference once, and take the user's pairs."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl
from conftest import SEED, Command, reached, read_records, run_code, timeless
from polyrl.api import evaluate as polyrl_evaluate
from polyrl.core.experience import Experience
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.language.scalar import RewardModel
from polyrl.parts.optimize import Optimize
from polyrl.pretrain.wanted import prepare
from polyrl.run_state.language import Evaluation, LanguageRunState
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import task as built_in_task
from run_states import make_context

TASK = "sort-pairs(pairs=600)"
QUICK = {"evaluations": 1, "eval_prompts": 100, "tensorboard": False}


def trained(method: str, model: Path, out: Path, budget: str, **more: Any) -> polyrl.RunResult:
    options = {**QUICK, **more.pop("options", {})}
    return polyrl.train(method, task=TASK, model=model, out=out, budget=budget, quiet=True, options=options, **more)


# ----------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("method", ["dpo", "ipo", "slic", "simpo", "orpo", "kto", "online-dpo", "iterative-dpo"])
def test_the_gold_score_rises_clearly(method: str, taught: Path, tmp_path: Path) -> None:
    # at 1e-3 the third seed of slic has fallen, and of kto
    more = {
        "iterative-dpo": {"prompts_per_step": 64},
        "simpo": {"learning_rate": 7e-4},
        "slic": {"learning_rate": 5e-4},
        "kto": {"learning_rate": 7e-4},
    }
    hyperparameters = more.get(method, {"learning_rate": 1e-3})
    budget = "samples=4800" if method in ("simpo", "orpo", "kto") else "samples=1600"  # these go slowly
    result = trained(method, taught, tmp_path / "run", budget, seed=SEED, **hyperparameters)
    gain = result.final["eval/reward"] - result.start["eval/reward"]
    reached(gain, 0.1)  # 0.23 to 0.75 with three seeds; one standard error is 0.1
    assert result.start["eval/pair_accuracy"] == 0.5 and result.start["eval/kl"] == pytest.approx(0, abs=1e-4)
    if method not in ("online-dpo", "iterative-dpo"):  # these never see the pairs that are held out
        reached(result.final["eval/pair_accuracy"], 0.52)  # 0.55 to 0.67
    assert 0 < result.final["eval/kl"] < 8
    sampled = method in ("online-dpo", "iterative-dpo")
    assert result.spent["reward_calls"] == (result.spent["samples"] if sampled else 0)  # labelled before
    record = read_records(tmp_path / "run")[-1]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "eval/loss"} <= set(record)
    assert ("approx_kl" in record) == ("kl" in record) == sampled
    if sampled:
        assert 0 <= record["pairs/ties"] < 1 and record["pairs/score_gap"] > 0


def test_a_reward_model_learns_and_becomes_a_reward(taught: Path, tmp_path: Path, polyrl: Command) -> None:
    """Chosen answers are sorted, rejected ones have a letter: held-out pairs are soon told apart."""
    from polyrl.pretrain.reward_models import load_reward

    rows = built_in_task("sort-pairs").rows("train", 5, 0, 500)
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": f"a{r['answer'][1:]}"} for r in rows]
    file, run = tmp_path / "pairs.jsonl", tmp_path / "scorer"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    line = ["--dataset", file, "--model", taught, "--no-tensorboard", "--quiet"]
    line += ["--learning-rate", 2e-3, "--budget", "samples=1600", "--evaluations", 1, "--seed", SEED]
    told = polyrl("train", "reward-model", *line, "--out", run)
    assert (told.code, told.err) == (0, "")
    start, final = (read_records(run)[i] for i in (0, -1))
    reached(final["eval/pair_accuracy"], 0.9)
    reached(-final["eval/loss"] / start["eval/loss"], -0.8)
    assert "eval/pair_accuracy" in (run / "config.yaml").read_text()
    reward = load_reward(f"{run}=0.5")
    assert (reward.name, reward.weight) == ("scorer", 0.5)
    scores = reward.function(
        prompts=[r["prompt"] for r in pairs] * 2,
        completions=[r["chosen"] for r in pairs] + [r["rejected"] for r in pairs],
    )
    config = RunConfig(method="reward-model", task="dataset", dataset=str(file), model=str(taught))
    task = make_loop(config)[0].run_state.task
    judged = task.fixed_pairs["test"]
    known = torch.tensor(
        reward.function(
            prompts=[r["prompt"] for r in judged] * 2,
            completions=[r["chosen"] for r in judged] + [r["rejected"] for r in judged],
        )
    )
    # on the held-out pairs, whose responses it was scaled by, to rounding
    assert float(known.mean()) == pytest.approx(0, abs=1e-3)
    assert float(known.std(correction=0)) == pytest.approx(1, abs=1e-3)
    chosen, rejected = torch.tensor(scores).view(2, -1).mean(1)
    assert float(chosen - rejected) > 1  # as many standard deviations between right and wrong answers
    told = polyrl("eval", run)
    assert told.code == 0 and "pair_accuracy" in told.out, told
    assert polyrl("play", run).code == 2
    line = ["--task", TASK, "--model", taught, "--quiet", "--no-tensorboard", "--eval-prompts", 20]
    line += ["--budget", "iterations=1"]
    told = polyrl("train", "grpo", *line, "--reward", run / "model", "--out", tmp_path / "grpo")
    assert told.code == 0 and -3 < read_records(tmp_path / "grpo")[-1]["reward"] < 3, told
    told = polyrl("train", "grpo", *line, "--reward", taught, "--out", tmp_path / "no")
    assert told.code == 2 and "holds no reward model" in told.err and told.err.count("\n") == 1


# ----------------------------------------------------------------------------------------------- the run state of pairs


def run_state_of(model: Path, *, pairs: int = 48, **more: Any) -> LanguageRunState:
    task = built_in_task(f"sort-pairs(pairs={pairs})")
    prepare(task, str(model))
    return LanguageRunState(task, model, evaluation=Evaluation(prompts=20, greedy=False), **more)


def test_the_size_of_micro_batches_changes_nothing(taught: Path) -> None:
    batch = run_state_of(taught).pairs("train").batch(range(20))
    batch = batch.with_fields(weight=batch["mask"].float())
    found = []
    for tokens in (1, 60, 10_000):
        run_state = run_state_of(taught, micro_batch_tokens=tokens)
        with torch.no_grad():  # a policy that is not its reference any more
            for i, (_, p) in enumerate(run_state.parameters()["policy"]):
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        filled = batch.with_fields(ref_logprob=run_state.reference_logprob(batch))
        context = make_context(run_state)
        optimize = Optimize(max_grad_norm=1e9)
        context.optimizer = optimize.optimizers(run_state)
        optimize.run((DPOLoss(beta=0.5),), filled, context)
        assert len(run_state.micro_batches(filled, "pair")) == {1: 20, 10_000: 1}.get(tokens, 8) or tokens == 60
        grads = torch.cat([p.grad.flatten() for _, p in run_state.parameters()["policy"] if p.grad is not None])
        found.append((context.metrics["loss/dpo-loss"], grads))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(grads, found[0][1], atol=1e-5 * float(grads.abs().max()))


def test_the_reference_is_asked_once_for_each_pair(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[int] = Counter()
    original = LanguageRunState.reference_of

    def counting(self: LanguageRunState, experience: Experience) -> Tensor:
        if "example" in experience and "weight" not in experience:  # training: those held out are judged with weights
            asked.update(experience["example"].tolist())
        return original(self, experience)

    monkeypatch.setattr(LanguageRunState, "reference_of", counting)
    options = {**QUICK, "eval_prompts": 10}
    task = "sort-pairs(pairs=40)"
    result = polyrl.train(
        "dpo", task=task, model=taught, out=tmp_path / "run", budget="iterations=5", quiet=True, options=options,
        pairs_per_step=24,
    )  # fmt: skip
    assert result.spent["samples"] == 240 and asked == Counter(dict.fromkeys(range(80), 1))


def test_a_round_needs_no_reference_model(taught: Path, tmp_path: Path) -> None:
    """Log-ratios to the policy that sampled are 0 before the first step, and the loss is log 2."""
    from polyrl.catalogue import build

    assert "reference" not in build("iterative-dpo", {"reference": "round"}).required_models()
    assert "reference" in build("iterative-dpo").required_models()
    trained(
        "iterative-dpo(reference=round,epochs=1,minibatches=1)", taught, tmp_path / "run", "iterations=2",
        prompts_per_step=16,
    )  # fmt: skip
    for record in read_records(tmp_path / "run")[1:]:
        assert record["loss/dpo-loss"] == pytest.approx(0.693147, abs=1e-5)


def test_pairs_of_any_task_are_sampled_from_the_start(taught: Path, tmp_path: Path, polyrl: Command) -> None:
    """Prompts and a reward are enough: answers of the start without a letter are preferred."""
    rows = [{"prompt": r["prompt"]} for r in built_in_task("sort-pairs").rows("train", 5, 0, 700)]
    file, reward = tmp_path / "prompts.jsonl", tmp_path / "reward.py"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward.write_text(
        "def digits(prompts, completions, **columns):\n    return [float(c.isdigit()) for c in completions]\n"
    )
    line = ["--dataset", file, "--model", taught, "--max-tokens", 12, "--reward", f"{reward}:digits", "--quiet"]
    told = polyrl(
        "train", "dpo", *line, "--budget", "samples=1600", "--evaluations", 1, "--no-tensorboard", "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert told.code == 0, told.err
    start, final = (read_records(tmp_path / "run")[i] for i in (0, -1))
    assert final["eval/pair_accuracy"] > 0.65 and final["eval/loss"] < start["eval/loss"] == pytest.approx(
        0.6931, abs=1e-3
    )


# ------------------------------------------------------------------------------------------------ killed and resumed

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
left = int(sys.argv.pop(1))
step = torch.optim.AdamW.step
def dying(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
torch.optim.AdamW.step = dying
from polyrl.cli.main import main
main()
"""


class Killed(BaseException):
    """Ends a run without a word."""


@pytest.mark.parametrize("method", ["dpo", "iterative-dpo", "online-dpo+preference-label", "reward-model", "kto"])
def test_a_resumed_run_has_the_same_numbers(
    method: str, taught: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven iterations of 16 pairs go more than twice through 40 pairs: what the reference said must be kept."""
    from safetensors.torch import load_file

    words = ["train", method, "--task", "sort-pairs(pairs=40)", "--model", taught, "--budget", "iterations=7"]
    words += ["--checkpoint-every", 2, "--evaluations", 3, "--eval-prompts", 16, "--no-tensorboard", "--quiet"]
    sizes = {"iterative-dpo": ["--prompts-per-step", 8], "online-dpo+preference-label": ["--prompts-per-step", 8]}
    sizes["kto"] = ["--responses-per-step", 32]
    words += sizes.get(method, ["--pairs-per-step", 16])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert polyrl(*words, "--out", whole).code == 0
    steps = 5 * (8 if method == "iterative-dpo" else 1)  # in the sixth iteration
    if method == "dpo":
        line = [str(w) for w in (*words, "--out", broken)]
        done = run_code(KILLED, [str(steps), *line])
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        original, left = torch.optim.AdamW.step, [steps]

        def dying(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(Killed):
            polyrl(*words, "--out", broken)
        monkeypatch.undo()
    assert max(p.name for p in (broken / "checkpoints").iterdir()) == "iteration-000004"
    told = polyrl("resume", broken, "--quiet")
    assert told.code == 0, told.err
    assert timeless(read_records(whole)) == timeless(read_records(broken))
    assert read_records(whole, "samples.jsonl") == read_records(broken, "samples.jsonl")
    for file in sorted((whole / "model").glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(broken / "model" / file.name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# -------------------------------------------------------------------------------------------------- the user's pairs


@pytest.fixture(scope="module")
def pairs_file(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pairs of sort-pairs in TRL's plain columns, as a user would bring them."""
    task = built_in_task(TASK)
    prepare(task, str(taught))
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in task.fixed_pairs["train"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_pairs_of_the_user_need_no_reward(
    pairs_file: Path, taught: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    line = ["--dataset", pairs_file, "--model", taught, "--max-tokens", 12, "--no-tensorboard", "--quiet"]
    told = polyrl("train", "dpo", *line, "--budget", "samples=1600", "--evaluations", 1, "--out", run)
    assert (told.code, told.err) == (0, "")
    start, final = (read_records(run)[i] for i in (0, -1))
    assert start["eval/pair_accuracy"] == 0.5 and final["eval/pair_accuracy"] > 0.6
    assert final["eval/margin"] > 0 and final["eval/loss"] < start["eval/loss"]
    assert "eval/reward" not in final and "eval/mean_length" not in final and "eval/accuracy" not in final
    assert "eval/pair_accuracy" in (run / "config.yaml").read_text()
    shown = read_records(run, "samples.jsonl")
    assert {"prompt", "completion", "rejected"} <= set(shown[0]) and shown[0]["score"] == shown[0][
        "score_rejected"
    ] == 0
    assert all(row["correct"] == (row["score"] > row["score_rejected"]) for row in shown)
    told = polyrl("report", run, "--out", tmp_path / "page.html")
    assert told.code == 0, told.err
    told = polyrl("play", run, "--prompts", 2)
    assert told.code == 0, told.err
    monkeypatch.setattr(LanguageRunState, "sample", lambda *_, **__: pytest.fail("nothing is to be answered"))
    judged = polyrl_evaluate(run, prompts=200)
    assert judged["eval/pair_accuracy"] == pytest.approx(final["eval/pair_accuracy"])
    assert judged["eval/margin"] == pytest.approx(final["eval/margin"], rel=1e-4)


@pytest.mark.parametrize(("method", "held"), [("simpo", False), ("orpo", False), ("dpo", True)])
def test_what_needs_no_reference_trains_without_one(
    method: str, held: bool, pairs_file: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is asked about held-out pairs before the first step, and let go; they are told apart as for DPO."""
    seen: list[bool] = []
    original = Optimize.run

    def watching(self: Optimize, terms: Any, experience: Experience, context: Any) -> None:
        seen.append("reference" in vars(context.run_state))
        original(self, terms, experience, context)

    loads: list[str] = []
    load = LanguageRunState.reference.func

    def loading(self: LanguageRunState) -> Any:
        loads.append(self.reference_name)
        return load(self)

    monkeypatch.setattr(Optimize, "run", watching)
    monkeypatch.setattr(LanguageRunState.reference, "func", loading)
    run = tmp_path / "run"
    result = polyrl.train(
        method, dataset=pairs_file, model=taught, out=run, budget="iterations=6", quiet=True,
        options={**QUICK, "max_tokens": 12, "evaluations": 2},
    )  # fmt: skip
    assert seen == [held] * 6
    assert len(loads) == 1 or not held  # what is trained with it stays where it is
    assert result.start["eval/pair_accuracy"] == 0.5 and result.final["eval/pair_accuracy"] != 0.5
    assert polyrl_evaluate(run)["eval/margin"] == pytest.approx(result.final["eval/margin"], rel=1e-4)


def test_what_is_wrong_with_the_users_pairs_is_one_sentence(
    pairs_file: Path, taught: Path, tmp_path: Path, polyrl: Command
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    broken = {
        "equal": ([*rows[:40], {**rows[40], "rejected": rows[40]["chosen"]}], ["row 41", "equal", "--skip-bad-rows"]),
        "long": ([{**rows[0], "chosen": "1" * 80}, *rows[1:40]], ["context of 64"]),
        "missing": ([{"prompt": r["prompt"], "chosen": r["chosen"]} for r in rows[:40]], ["chosen and rejected"]),
    }
    for name, (some, words) in broken.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in some))
        told = polyrl("train", "dpo", "--dataset", file, "--model", taught, "--max-tokens", 12, "--out", tmp_path / "x")
        assert told.code == 2 and told.err.count("\n") == 1 and all(w in told.err for w in words), (name, told)
        assert not (tmp_path / "x").exists()
    line = ["--dataset", pairs_file, "--model", taught, "--max-tokens", 12, "--quiet", "--out", tmp_path / "y"]
    told = polyrl("train", "grpo", *line)
    assert told.code == 2 and told.err.count("\n") == 1 and "no reward" in told.err, told
    told = polyrl("train", "dpo", "--task", "CartPole-v1", "--out", tmp_path / "z")
    assert told.code == 2 and told.err.count("\n") == 1 and "language" in told.err, told


def test_a_preference_function_of_the_user(taught: Path, tmp_path: Path, polyrl: Command) -> None:
    """A judge who likes short answers gets them."""
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def shorter(prompts, completions_a, completions_b, **columns):\n"
        "    pairs = zip(completions_a, completions_b)\n"
        "    return [0.5 if len(a) == len(b) else float(len(a) < len(b)) for a, b in pairs]\n\n"
        "def sure(prompts, completions_a, completions_b):\n    return [7] * len(prompts)\n"
    )
    line = ["--task", TASK, "--model", taught, "--budget", "samples=1600", "--evaluations", 1, "--no-tensorboard"]
    method = "online-dpo+preference-label(label=hard)"
    told = polyrl("train", method, *line, "--preference", f"{judge}:shorter", "--out", tmp_path / "run", "--quiet")
    assert told.code == 0, told.err
    records = read_records(tmp_path / "run")
    assert records[-1]["eval/mean_length"] < records[0]["eval/mean_length"] - 0.3
    told = polyrl("train", method, *line, "--preference", f"{judge}:sure", "--out", tmp_path / "no")
    assert told.code == 2 and "returned 7 where a probability belongs" in told.err and told.err.count("polyrl:") == 1
    reverse = ["--task", "reverse", "--model", taught, "--out", tmp_path / "none", "--max-tokens", 8]
    told = polyrl("train", method, *reverse, "--budget", "iterations=1")
    assert told.code == 2 and "--preference" in told.err and "'reverse'" in told.err


def test_a_reward_model_reads_conversations(taught: Path) -> None:
    """They are laid out by the chat template, as for the policy."""
    model = RewardModel.load(taught).requires_grad_(False)
    plain = model.score_texts(["12>"], ["12"])
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    talked = model.as_batch([[{"role": "user", "content": "12>"}]], [[{"role": "assistant", "content": "12"}]])
    assert float(model.score(talked)) == pytest.approx(float(plain), abs=1e-6)
