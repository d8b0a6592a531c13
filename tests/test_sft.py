"""Supervised fine-tuning: TRL's loss on the same rows, every form of data, what is learned and what is only read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import polyrl
from chat_tokenizers import byte_tokenizer
from conftest import SEED, Command, reached, read_records
from polyrl.catalogue import build
from polyrl.core.loop import Loop
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.pretrain.tiny import build_tiny
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import task as built_in_task

Rows = list[dict[str, Any]]

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model whose weights are sines, the same on every machine, with a chat template."""
    folder = tmp_path_factory.mktemp("waves")
    tokenizer = byte_tokenizer(template=TEMPLATE, end="<|end|>")
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **ids))
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(model.named_parameters())):
            if p.dim() > 1:
                n = torch.arange(p.numel(), dtype=torch.float64)
                p.copy_((0.4 * torch.sin(i + 1.7 * n + 0.01 * n * n)).reshape(p.shape).float())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PLAIN: Rows = [
    {"prompt": "The sky is", "completion": " blue."},
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "Say a longer thing:", "completion": " here is one, of many words"},
    {"prompt": "a", "completion": "b c"},
]
CHAT: Rows = [
    {"prompt": [user("Hi")], "completion": [says("Hello!")]},
    {"prompt": [user("2+2?")], "completion": [says("4")]},
    {"prompt": [{"role": "system", "content": "Be short."}, user("Why?")], "completion": [says("Because it is so.")]},
]
TURNS: Rows = [
    {"messages": [user("Hi"), says("Hello!"), user("2+2?"), says("4")]},
    {"messages": [user("Why?"), says("Because.")]},
]
HELD: Rows = [{"prompt": "held", "completion": "out"}]
HELD_CHAT: Rows = [{"prompt": [user("held")], "completion": [says("out")]}]


def made(rows: Rows, model: Path, folder: Path, held: Rows | None = None, method: str = "sft", **more: Any) -> Loop:
    files = folder / "rows.jsonl", folder / "held.jsonl"
    for file, found in zip(files, (rows, HELD if held is None else held), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in found))
    asked: dict[str, Any] = {"task": "dataset", "dataset": str(files[0]), "test_dataset": str(files[1])}
    settings = {"demonstrations_per_step": str(len(rows))} if method == "sft" else {}
    settings |= more.pop("hyperparameters", {})
    return make_loop(RunConfig(method=method, **asked, model=str(model), hyperparameters=settings, **more))[0]


TRL = {
    "prompts and completions": (PLAIN, 41, 6.138697147369, 6.350643138089),
    "messages before a message": (CHAT, 27, 6.133683204651, 4.750080369052),
    "conversations of several turns": (TURNS, 18, 6.293149948120, 6.541563665799),
}
"""Rows, learned tokens, and what `SFTTrainer.compute_loss` of TRL 1.16.0 gave in float64, with the gradient's norm.

`completion_only_loss` as it is by default; of several turns `assistant_only_loss`.
"""


@pytest.mark.parametrize("form", TRL)
@pytest.mark.parametrize("micro_batch_tokens", [16, 1024])
def test_loss_and_gradient_are_trls(form: str, micro_batch_tokens: int, waves: Path, tmp_path: Path) -> None:
    rows, tokens, loss, norm = TRL[form]
    plain = "prompt" in rows[0] and isinstance(rows[0]["prompt"], str)
    loop = made(
        rows,
        waves,
        tmp_path,
        HELD if plain else HELD_CHAT,
        chat_template=not plain,
        micro_batch_tokens=micro_batch_tokens,
    )
    loop.run_state.policy.double()  # type: ignore[attr-defined]
    batch = loop.iterate()
    assert batch is not None and int(batch["mask"].sum()) == tokens
    assert loop.context.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert loop.context.metrics["grad_norm/policy"] == pytest.approx(norm, abs=1e-5)


def test_what_users_and_tools_say_is_read_and_not_learned(waves: Path, tmp_path: Path) -> None:
    loop = made(TURNS[:1], waves, tmp_path, HELD_CHAT)
    batch = loop.iterate()
    assert batch is not None
    policy: LanguagePolicy = loop.run_state.policy  # type: ignore[attr-defined]
    ids, mask = batch["action"][0], batch["mask"][0]
    raw = policy.tokenizer.decode(ids[mask], skip_special_tokens=False)
    assert raw == "Hello!<|end|>4<|end|>"
    assert "2+2?" in policy.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "p", "chosen": " c", "rejected": " r"}, " c"),
        ({"question": "How many?", "answer": "one and two\n#### 3"}, "one and two\n#### 3"),
        ({"prompt": "p", "solution": " s", "answer": "3"}, " s"),
        ({"prompt": "p", "answer": "3"}, "3"),
    ],
)
def test_what_is_imitated_of_other_data(row: dict[str, str], text: str, waves: Path, tmp_path: Path) -> None:
    held = [{name: "x" if name in ("prompt", "question") else value for name, value in row.items()}]
    loop = made([row], waves, tmp_path, held, chat_template=False, max_tokens=16)
    batch = loop.iterate()
    assert batch is not None
    policy: LanguagePolicy = loop.run_state.policy  # type: ignore[attr-defined]
    assert policy.decode(batch["action"][0].tolist()) == text


def test_of_labelled_responses_the_good_ones_are_imitated(waves: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f" c{i}", "label": i % 2 == 0} for i in range(8)]
    held = [{"prompt": f"h{i}", "completion": " x", "label": bool(i)} for i in range(2)]
    loop = made(rows, waves, tmp_path, held, chat_template=False)
    given = loop.run_state.completions("train")  # type: ignore[attr-defined]
    assert sorted(row["completion"] for row in given.rows) == [" c0", " c2", " c4", " c6"]
    assert "for being labelled false" in " ".join(loop.run_state.notices())
    assert loop.metric.key == "eval/nll" and "eval/auc" not in loop.run_state.evaluate()[0]


def test_labels_and_imitation_of_the_same_rows_are_two_phases(waves: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f" c{i}", "label": i % 2 == 0} for i in range(8)]
    held = [{"prompt": f"h{i}", "completion": " x", "label": bool(i)} for i in range(2)]
    with pytest.raises(UserError, match="as in sft,kto"):
        made(rows, waves, tmp_path, held, "kto+sft", chat_template=False)


def test_data_of_completions_alone_is_judged_by_their_likelihood(waves: Path, tmp_path: Path) -> None:
    loop = made(PLAIN, waves, tmp_path, chat_template=False)
    metrics, samples = loop.run_state.evaluate()
    assert loop.metric.key == "eval/nll" and not loop.metric.higher_is_better and set(metrics) == {"eval/nll"}
    policy: LanguagePolicy = loop.run_state.policy  # type: ignore[attr-defined]
    ids = [*policy.encode_prompt("held"), *policy.encode_response("held", "out")]
    with torch.no_grad():
        found = policy.causal_lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    plain = -sum(float(found[i - 1, ids[i]]) for i in range(len(ids) - 4, len(ids))) / 4
    assert metrics["eval/nll"] == pytest.approx(plain, abs=1e-4)
    assert (samples[0]["prompt"], samples[0]["completion"]) == ("held", "out")
    answered = made(PLAIN, waves, tmp_path, chat_template=False, checker="exact", max_tokens=16)
    assert answered.metric.key == "eval/accuracy"
    assert {"eval/nll", "eval/accuracy"} <= set(answered.run_state.evaluate()[0])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p"}], "rows.jsonl, row 1: there is nothing to imitate; give the columns prompt and completion"),
        ([{"messages": [user("p")]}], "row 1: the column 'messages' has no message of the assistant"),
        ([{"messages": [says("p")]}], "row 1: the column 'messages' begins with the assistant's"),
        ([{"messages": [user("p"), says("q"), user("r")]}], "must end with the assistant's message"),
        ([{"text": "whole"}], "no column 'prompt'"),
        ([{"prompt": "p" * 200, "completion": "q"}], "more than the model's context of 128"),
    ],
)
def test_bad_rows_are_refused_in_a_sentence(rows: Rows, said: str, waves: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        made(rows, waves, tmp_path, HELD_CHAT if "messages" in rows[0] else HELD, chat_template=False)
    assert said in str(refused.value) and str(refused.value).count("\n") == 0


def test_bad_rows_are_left_out_and_counted(waves: Path, tmp_path: Path) -> None:
    rows = [*PLAIN, {"prompt": "alone"}, {"prompt": "p" * 200, "completion": "q"}]
    loop = made(rows, waves, tmp_path, chat_template=False, skip_bad_rows=True)
    assert len(loop.run_state.completions("train")) == 4  # type: ignore[attr-defined]
    assert loop.run_state.rows_left_out == 2


def test_only_the_first_demonstrations_are_taken_where_somebody_says_how_many(waves: Path, tmp_path: Path) -> None:
    loop = made(PLAIN, waves, tmp_path, chat_template=False, hyperparameters={"demonstrations": "2"})
    assert [row["prompt"] for row in loop.run_state.completions("train").rows] == ["The sky is", "2+2="]  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------- beside another objective


def test_with_weight_0_the_other_method_is_itself_to_the_bit(taught: Path, tmp_path: Path) -> None:
    options = {"evaluations": 1, "eval_prompts": 20, "tensorboard": False}
    for name, method in (("alone", "dpo"), ("beside", "dpo+sft(sft_weight=0)"), ("mixed", "dpo+sft(sft_weight=0.5)")):
        polyrl.train(
            method,
            task="sort-pairs(pairs=200)",
            model=taught,
            budget="iterations=3",
            out=tmp_path / name,
            options=options,
            quiet=True,
        )
    weights = {n: (tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("alone", "beside", "mixed")}
    assert weights["alone"] == weights["beside"] != weights["mixed"]
    assert "loss/completion-rows" in read_records(tmp_path / "mixed")[-1]


def test_two_streams_are_one_step_on_the_sum_of_both_gradients(waves: Path, tmp_path: Path) -> None:
    """DPO on its pairs and the likelihood of completions, the gradient of each as a loop of plain torch gives it."""
    rows = [{"prompt": f"p{i}", "chosen": f" good {i}", "rejected": f" bad{i}"} for i in range(4)]
    held = [{"prompt": "held", "chosen": " a", "rejected": " b"}]
    norms = {}
    for weight in (0.0, 0.7):
        more = {"pairs_per_step": "4", "sft_weight": str(weight), "sft_rows": "4", "max_grad_norm": "1e9"}
        loop = made(rows, waves, tmp_path, held, "dpo+sft", chat_template=False, hyperparameters=more)
        policy: LanguagePolicy = loop.run_state.policy.double()  # type: ignore[attr-defined]
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        loop.iterate()
        norms[weight] = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        if weight:
            assert loop.context.metrics["loss/completion-rows"] > 0
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p.copy_(before[name])
    given = loop.run_state.completions("train")  # type: ignore[attr-defined]
    policy.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for number in range(4):
        one = given.ids(number)
        ids = torch.tensor([[*one.prompt, *one.response]])
        logits = policy.causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        first = len(one.prompt)
        total = total - logits[torch.arange(first - 1, ids.shape[1] - 1), ids[0, first:]].sum()
        count += len(one.response)
    (0.7 * total / count).backward()  # type: ignore[no-untyped-call]
    for name, p in policy.named_parameters():
        if name in norms[0.7] and p.grad is not None:
            torch.testing.assert_close(norms[0.7][name], norms[0.0][name] + p.grad, atol=1e-6, rtol=1e-4)


def test_where_no_steps_can_be_joined_that_is_said() -> None:
    with pytest.raises(UserError, match=r"ppo-max takes its steps in a way of its own.*take sft as a phase before it"):
        build("ppo-max+sft")
    hybrid = build("hypo+sft(sft_weight=0.3)")
    assert hybrid.hyperparameters()["imitation-beside.sft_weight"] == 0.3


# ----------------------------------------------------------------------------------------------------------- learning


def test_demonstrations_are_learned_and_the_likelihood_rises(taught: Path, tmp_path: Path) -> None:
    result = polyrl.train(
        "sft",
        task="sort-pairs(pairs=100)",
        model=taught,
        budget="samples=1600",
        out=tmp_path / "run",
        seed=SEED,
        quiet=True,
        options={"evaluations": 1, "eval_prompts": 100, "tensorboard": False},
    )
    reached(result.final["eval/gold"] - result.start["eval/gold"], 0.5)
    reached(-result.final["eval/nll"] / result.start["eval/nll"], -0.7)


def test_a_model_folder_and_a_file_are_enough(waves: Path, tmp_path: Path, polyrl: Command) -> None:
    file, run = tmp_path / "chat.jsonl", tmp_path / "run"
    rows = [{"messages": [user(f"say {i}"), says(f"it is {i}")]} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--model", waves, "--dataset", file, "--budget", "samples=320", "--evaluations", 1, "--lora", 4, "--quiet"]
    line += ["--max-tokens", 16]
    told = polyrl("train", "sft", *line, "--learning-rate", 1e-2, "--no-tensorboard", "--out", run)
    assert (told.code, told.err) == (0, "")
    records = read_records(run)
    reached(-records[-1]["eval/nll"] / records[0]["eval/nll"], -0.9)
    told = polyrl("eval", run)
    assert told.code == 0 and "nll" in told.out, told
    assert polyrl("play", run, "--prompts", 1).code == 0


def test_of_a_built_in_task_the_tools_words_are_read_and_not_learned(tmp_path: Path) -> None:
    size = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 16, "context": 256}
    model = str(build_tiny(tmp_path / "tiny", 0, **size))
    loop = make_loop(RunConfig(method="sft", task="calculator", model=model, hyperparameters={"demonstrations": "8"}))[
        0
    ]
    given = loop.run_state.completions("train")  # type: ignore[attr-defined]
    task = built_in_task("calculator")
    own = [given.ids(n).own for n in range(8)]
    assert any(o is not None and not all(o) for o in own)
    assert task.tool is not None
