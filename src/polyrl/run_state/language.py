"""Makes task, models and state of a language run from what a person asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from polyrl.errors import UserError
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import Backbone, LanguagePolicy
from polyrl.pretrain.demonstrations import give_completions
from polyrl.pretrain.pairs import give_pairs
from polyrl.pretrain.reward_models import load_reward
from polyrl.pretrain.start import start_folder, start_model
from polyrl.pretrain.wanted import prepare as make_wanted
from polyrl.recipe import Term
from polyrl.run_state.language_evaluation import EVALUATION_SEED, Evaluation, answers
from polyrl.run_state.language_run_state import CHECKED_ROWS, LanguageRunState
from polyrl.run_state.reward_model import FOLDER as REWARD_MODEL
from polyrl.run_state.reward_model import RewardModelRunState
from polyrl.run_state.tables import check_tables
from polyrl.run_state.user_data import check_pairs_can_be_made, fit_rows
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.runtime.device import apply, settings_of
from polyrl.tasks.language import LanguageTask
from polyrl.tasks.language import task as built_in_task
from polyrl.tasks.language.base import digest
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.chat import Chat, Columns
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.judge import load_preference
from polyrl.tasks.language.preferences import PAIR_METRIC, dataset_task
from polyrl.tasks.language.rewards import unloaded_reward
from polyrl.tasks.language.tabled import TabledTask

if TYPE_CHECKING:
    from polyrl.recipe import Recipe

__all__ = [
    "EVALUATION_SEED",
    "Evaluation",
    "LanguageRunState",
    "give_imitated",
    "load_run_state",
    "make_model",
    "make_run_state",
    "make_task",
    "open_trained",
    "prepare",
    "task_on",
]

Say = Callable[[str], None]
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def make_task(config: RunConfig, given: PythonObjects, *, load_code: bool = True) -> LanguageTask:
    """The built-in task, or the user's dataset with the user's rewards.

    Without `load_code` the user's own rewards are there by name only, and a preference function is not there at all.
    """
    load = load_reward if load_code else unloaded_reward
    rewards = [*(load(spec) for spec in config.rewards), *given.rewards]
    data = given.dataset if given.dataset is not None else config.dataset
    test = given.test_dataset if given.test_dataset is not None else config.test_dataset
    if data is not None:
        how: Any = {"checker": config.checker, "skip_bad_rows": config.skip_bad_rows, "columns": columns_of(config)}
        task: LanguageTask = dataset_task(data, test, rewards, **how)
        task.chat = chat_of(config)
    else:
        settings = {} if config.difficulty is None else {"difficulty": config.difficulty}
        task = built_in_task(config.task, **settings)
        if config.start == "own":
            task.draw_anew(config.seed)
        if rewards:
            task.rewards = rewards
    if given.preference or (config.preference and load_code):
        task.preference = given.preference or load_preference(str(config.preference))
    task.calls = CallPolicy(config.on_reward_error, config.reward_timeout, config.reward_process, config.seed)
    if config.max_tokens:
        task.max_tokens = config.max_tokens
    return task


def columns_of(config: RunConfig) -> Columns:
    """Columns of the data with prompt and answer, where they are called otherwise."""
    return Columns(config.prompt_column or "", config.answer_column or "")


def chat_of(config: RunConfig) -> Chat:
    """How plain prompts of the data are asked."""
    return Chat(config.chat_template, config.system_prompt or "")


def task_on(config: RunConfig, given: PythonObjects, data: Any) -> LanguageTask:
    """The rows of `data` to be judged on, all of them, answered under the limits of the run's own task."""
    rewards = [*(load_reward(spec) for spec in config.rewards), *given.rewards]
    how: Any = {"checker": config.checker, "skip_bad_rows": config.skip_bad_rows, "columns": columns_of(config)}
    task = dataset_task(data, None, rewards, **how, judged_whole=True)
    if config.task in ("", "dataset"):
        task.chat = chat_of(config)
    else:  # a policy that has read its own task's prompts as they are
        own = built_in_task(config.task)
        task.max_tokens, task.stop = own.max_tokens, tuple(own.stop)
    task.calls = CallPolicy(config.on_reward_error, config.reward_timeout, config.reward_process, config.seed)
    task.max_tokens = config.max_tokens or task.max_tokens
    if not (task.rewards or task.fixed_pairs or task.labelled):
        raise UserError(
            "Nothing judges answers on this data: it has no column 'answer', 'solution' or 'completion', and no pairs; "
            "give --reward."
        )
    return task


def start_seed(config: RunConfig) -> int:
    """The seed that a built-in task's starting model is made with: the run's own, where each seed has its own start."""
    return config.seed if config.start == "own" else 0


def would_make(config: RunConfig) -> str:
    """A fingerprint of what a run on a built-in task starts from: the model, and what its reward and pairs are made by.

    Nothing is made. Two seeds with the same fingerprint share their start, and are one observation of it.
    """
    task = make_task(config, PythonObjects())
    return digest([start_folder(task, start_seed(config)).name, task.drawn_from()])


def make_model(config: RunConfig, task: LanguageTask, say: Say = lambda _: None) -> str:
    """Name or folder of the starting model; makes the tiny model where none was given."""
    if config.model:
        return config.model
    if isinstance(task, DatasetTask):
        raise UserError("A dataset needs a model: give --model with a folder or a Hugging Face hub id.")
    return str(start_model(task, start_seed(config), say))


def give_imitated(config: RunConfig, task: LanguageTask, recipe: Recipe) -> None:
    """Give the task the responses that a recipe imitates, where it imitates some; what judges runs may follow.

    Raises:
        UserError: it also learns from the labels of the same rows, of which the bad ones are not imitated.
    """
    readers = [part for part in recipe.stated_parts() if part.given_completions]
    if readers and task.labelled and recipe.collect is not None and "desirable" in recipe.collect.gives:
        raise UserError(
            f"{recipe.name} learns from labels and imitates responses, and this data has both in the same rows; take "
            "sft as a phase before it, as in sft,kto."
        )
    if readers:
        counts = [part.setting("demonstrations", None) for part in readers]
        give_completions(
            task,
            seed=config.seed,
            held_out_seed=EVALUATION_SEED,
            count=None if None in counts else max(counts),
            checker=bool(config.checker or config.rewards),
        )


def prepare(config: RunConfig, task: LanguageTask, say: Say = lambda _: None) -> str:
    """Make the starting model and what the rewards need of it, where they are not there yet; return the model."""
    if config.lora:
        from polyrl.models.language.folders import import_peft

        import_peft()
    model = make_model(config, task, say)
    make_wanted(task, model, say)
    return model


def make_run_state(
    config: RunConfig, task: LanguageTask, recipe: Recipe, say: Say = lambda _: None
) -> LanguageRunState | RewardModelRunState:
    """Load the models, and find what is wrong with prompts, pairs and rewards."""
    needs_labels = recipe.collect is not None and "desirable" in recipe.collect.gives
    _refuse_unanswered(recipe, needs_labels)
    needs_pairs = recipe.fixed_pairs or (needs_labels and not task.labelled)
    if needs_pairs:
        own = any(not reward.checker for reward in task.rewards) or bool(config.rewards)
        check_pairs_can_be_made(task, config.arm, judged=own or task.preference is not None, labels=needs_labels)
    if isinstance(task, TabledTask):
        check_tables(config, task, recipe)
    give_imitated(config, task, recipe)
    model = prepare(config, task, say)
    for part in (*recipe.score, *(part for _, part in recipe.entries() if part.stage == "score")):
        part.prepare(task, model, say)
    room = (recipe.collect and recipe.collect.setting("max_tokens", None)) or task.max_tokens
    if needs_pairs and not task.fixed_pairs:
        if isinstance(task, DatasetTask):
            start = LanguagePolicy.load(model)
            start.ask_as(task.chat)
            _fit(config, task, start, room)
        give_pairs(task, model, say=say)
    terms = [t for t in recipe.parts() if isinstance(t, Term) and {"preferred", "desirable"} & t.required()]
    if "reward-model" in recipe.required_models():
        return load_reward_model(config, task, model, terms)
    torch.manual_seed(config.seed)  # for what transformers and peft initialize (adapters); sampling has its own streams
    run_state = load_run_state(config, task, model, critic=_critic(recipe, task, model), terms=terms)
    if recipe.models:
        run_state.take_models(recipe.models, recipe.acts, recipe.judged or recipe.acts, recipe.moved)
    run_state.keeps_reference = "reference" in recipe.required_models()
    if (recipe.fixed_pairs or needs_labels or task.completions) and not answers(run_state):
        room = 0  # what was written already is read, and nobody answers
    _fit(config, task, run_state.policy, room)
    _say_how_prompts_are_asked(task, run_state.policy)
    some = [row for split in SPLITS for row in task.rows(split, config.seed, 0, CHECKED_ROWS)]
    run_state.check_rows(some, room)
    for part in recipe.parts():
        for name, make in part.brings.items():
            if name not in run_state.own:
                run_state.own[name] = make(run_state)
    return run_state


def _refuse_unanswered(recipe: Recipe, labelled: bool) -> None:
    """Refuse parts of a composition that ask for responses where nobody writes any.

    Raises:
        UserError: names the part.
    """
    collect = recipe.collect
    if collect is not None and "reward-model" in recipe.required_models() and not recipe.fixed_pairs:
        raise UserError(
            f"{recipe.name} trains a reward model, which writes no responses, and its part '{collect.name}' asks for "
            "some; train it with `polyrl train reward-model`, and give its folder as --reward."
        )
    for part in recipe.score:
        if labelled and {"score", "reward", "preferred"} & part.gives:
            raise UserError(
                f"{recipe.name} learns from labelled responses, and its part '{part.name}' judges responses that were "
                "just sampled; leave one of the two out."
            )


def _ask(config: RunConfig, task: LanguageTask, reader: Backbone) -> None:
    """Let a model read prompts as was asked; one that is judged by itself, unless something was asked, as it says."""
    alone = not config.method and task.chat == Chat() and reader.chat is not None
    reader.ask_as(reader.chat if alone else task.chat)


def _say_how_prompts_are_asked(task: LanguageTask, reader: Backbone) -> None:
    """Say that plain texts become messages of the user, which not everybody expects."""
    if not isinstance(task, DatasetTask):
        return
    rows = [*task.train_rows, *task.test_rows]
    asked = sum(isinstance(row["prompt"], str) and not isinstance(reader.asked(row["prompt"]), str) for row in rows)
    if asked:
        task.notices.append(
            f"{asked} of {len(rows)} prompts are plain text and the model has a chat template: each is asked as a "
            "message of the user (--no-chat-template leaves them as they are)."
        )


def _fit(config: RunConfig, task: LanguageTask, reader: Backbone, room: int) -> None:
    fit_rows(task, reader, room=room, max_prompt_tokens=config.max_prompt_tokens, skip=config.skip_bad_rows)


def _critic(recipe: Recipe, task: LanguageTask, model: str) -> bool | str:
    """Whether there is a critic, or the folder of the reward model that it begins as."""
    starts = [part.setting("critic_start", "policy") for part in recipe.select]
    if "critic" in recipe.required_models() and "reward-model" in starts:
        return task.scoring_folder(model)
    return "critic" in recipe.required_models()


def load_reward_model(
    config: RunConfig, task: LanguageTask, model: str, terms: Sequence[Term] = ()
) -> RewardModelRunState:
    """The run state of a reward model that starts from `model`."""
    if config.lora:
        raise UserError("A reward model is trained whole; leave --lora away.")
    settings = settings_of(config)
    apply(settings)
    run_state = RewardModelRunState(
        task,
        model,
        seed=config.seed,
        device=settings.device,
        precision=settings.precision,
        micro_batch_tokens=settings.micro_batch_tokens,
        prompts=_evaluation(config, task).prompts,
        terms=terms,
    )
    _ask(config, task, run_state.model)
    _fit(config, task, run_state.model, 0)
    _say_how_prompts_are_asked(task, run_state.model)
    for split in SPLITS:
        run_state.pairs(split).check(CHECKED_ROWS)
    return run_state


def _evaluation(config: RunConfig, task: LanguageTask) -> Evaluation:
    """What was asked for, or else what the task is judged by."""
    prompts = task.evaluation_prompts if config.eval_prompts is None else config.eval_prompts
    return Evaluation(prompts=prompts, greedy=config.eval_greedy and task.evaluation_greedy)


def load_run_state(
    config: RunConfig,
    task: LanguageTask,
    model: str,
    *,
    critic: bool | str = False,
    terms: Sequence[Term] = (),
    reference: str | None = None,
) -> LanguageRunState:
    """The run state with `model` as its policy; the reference is `model` too unless another is given."""
    settings = settings_of(config)
    apply(settings)
    run_state = LanguageRunState(
        task,
        model,
        seed=config.seed,
        device=settings.device,
        precision=settings.precision,
        lora=LoraSettings(rank=config.lora) if config.lora else None,
        evaluation=_evaluation(config, task),
        calls=task.calls,
        micro_batch_tokens=settings.micro_batch_tokens,
        monitor_kl_every=config.monitor_kl_every,
        critic=critic,
        pair_terms=terms,
        reference=reference,
        servers=[one.strip() for one in (config.engine or "").split(",") if one.strip()],
    )
    _ask(config, task, run_state.policy)
    return run_state


def open_trained(
    folder: Path, config: RunConfig, task: LanguageTask, *, judged: bool = True, start: str = ""
) -> LanguageRunState | RewardModelRunState:
    """The run state of a run whose policy is the model in `folder`: a checkpoint, or the run's `model/`.

    Without `judged` the policy only acts, and what the task's rewards need is not made. `start` is the model that the
    run started from, where the task does not tell it.
    """
    own = bool(config.rewards or config.preference)
    if task.needs_model and (judged or not own):  # of the model that the run started from, not of what it has trained
        make_wanted(task, start or make_model(config, task))
    for scores in (folder / REWARD_MODEL, folder):
        if (scores / "head.safetensors").is_file():
            if not judged:
                raise UserError(
                    f"{folder} is a reward model, which answers nothing; its run's samples.jsonl has scores."
                )
            if not task.fixed_pairs:
                give_pairs(task, start or make_model(config, task))
            task.metric = PAIR_METRIC
            return load_reward_model(config, task, str(scores))
    model = folder / "policy" if (folder / "policy").is_dir() else folder
    # how far it went and how it tells responses apart is told against the start
    reference = start or make_model(config, task) if task.fixed_pairs or task.labelled else None
    here = dataclasses.replace(config, lora=None, engine=None)  # the run's servers may be long gone
    run_state = load_run_state(here, task, str(model), reference=reference)
    only_read = isinstance(task, DatasetTask) and (task.judged_whole or task.completions) and not answers(run_state)
    _fit(config, task, run_state.policy, 0 if only_read else task.max_tokens)  # the test rows that it was judged on
    return run_state
