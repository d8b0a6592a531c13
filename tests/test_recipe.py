"""Recipes: what is checked, what is put in by itself, how methods compose and hyperparameters are set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from polyrl import catalogue
from polyrl.catalogue import build
from polyrl.errors import UserError
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import EntropyBonus, PolicyGradient, ReferenceKL, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty
from polyrl.parts.select import AllSteps, DropEqualGroups
from polyrl.recipe import Part, Recipe, Stage, hyperparameter, kebab
from polyrl.settings import parse_value


def base(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "mine",
        "collect": SampleResponses(),
        "score": (TaskReward(),),
        "credit": (GAE(),),
        "terms": (PolicyGradient(),),
        "optimize": Optimize(),
    }
    return Recipe(**{**fields, **changes})


def names(recipe: Recipe) -> dict[str, list[str]]:
    return {stage: [p.name for p in parts] for stage, parts in recipe.stages()}


# ------------------------------------------------------------------------------------------------------- checking


def test_what_replaces_a_slot_stands_there_once() -> None:
    """Where a chain has two parts of one slot, both go."""
    twice = base(credit=(GAE(), WhitenAdvantage(), GAE(gae_lambda=0.5)))
    assert names(twice + GAE(gae_lambda=0.9))["credit"] == ["values", "gae", "whiten-advantage"]


def test_a_missing_field_names_field_part_and_provider_in_one_sentence() -> None:
    broken = base(credit=(WhitenAdvantage(),))
    with pytest.raises(UserError) as error:
        broken.check(providers=catalogue.part_classes())
    text = str(error.value)
    assert text.startswith("mine: part 'whiten-advantage' needs the field 'advantage', which nobody gives; ")
    assert "'gae' or 'period-baseline' or 'plain-return'" in text  # of the many that would, those that no paper owns
    for provider in ("'group-advantage'", "'leave-one-out'", "'greedy-baseline'"):
        assert provider not in text
    assert text.endswith(" would give it.") and text.count(". ") == 0 and "\n" not in text


def test_a_field_given_too_late_is_told_apart() -> None:
    with pytest.raises(UserError, match="needs the field 'advantage', which nobody gives; 'gae' gives it, but later"):
        base(credit=(WhitenAdvantage(), GAE())).check()
    with pytest.raises(
        UserError, match=r"'token-kl-penalty' needs the field 'reward'.*'task-reward' gives it, but later"
    ):
        base(score=(TokenKLPenalty(), TaskReward())).check()


def test_a_field_that_no_part_knows() -> None:
    @dataclass(frozen=True, kw_only=True)
    class NeedsTheMoon(Part):
        stage: ClassVar[Stage] = "credit"
        needs: ClassVar[frozenset[str]] = frozenset({"moon"})

    with pytest.raises(UserError, match="'needs-the-moon' needs the field 'moon', which nobody gives; no known part"):
        base(credit=(GAE(), NeedsTheMoon())).check(providers=catalogue.part_classes())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"credit": (GAE(), AllSteps())}, "'all-steps' works in stage select, not in credit"),
        ({"score": (TaskReward(), WhitenAdvantage())}, "'whiten-advantage' works in stage credit, not in score"),
        ({"collect": TaskReward()}, "'task-reward' works in stage score, not in collect"),
        ({"terms": (TokenKLPenalty(),)}, "'token-kl-penalty' works in stage score, not in improve"),
        ({"select": (PolicyGradient(),)}, "'policy-gradient' works in stage improve, not in select"),
    ],
)
def test_a_part_in_the_wrong_place(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        base(**changes).check()


def test_every_method_of_the_catalogue_holds_together() -> None:
    for slug in catalogue.methods():
        recipe = build(slug)
        assert recipe.name == slug
        assert set(recipe.adds) <= {p.name for p in recipe.parts()} | {*recipe.models}, slug
        assert set(recipe.notes) <= {"collect", "score", "credit", "select", "improve"}, slug


# -------------------------------------------------------------------------------------------------- measuring parts


def test_the_reference_is_measured_only_where_the_kl_counts() -> None:
    on, off = build("rloo", {"kl_coef": 0.1}), build("rloo", {"kl_coef": 0})
    assert names(on)["score"] == ["task-reward", "reference-logprob", "token-kl-penalty"]
    assert names(off)["score"] == ["task-reward", "token-kl-penalty"]
    assert on.required_models() == {"reference"} and off.required_models() == frozenset()


def test_a_term_that_needs_the_reference_has_it_measured_in_score() -> None:
    on, off = build("grpo", {"kl_loss_coef": 0.04}), build("grpo")
    assert names(on)["score"] == ["task-reward", "reference-logprob"] and on.required_models() == {"reference"}
    assert names(off)["score"] == ["task-reward"] and off.required_models() == frozenset()


def test_both_kls_share_one_measurement() -> None:
    both = build("rloo+reference-kl", {"kl_loss_coef": 0.04})
    assert names(both)["score"] == ["task-reward", "reference-logprob", "token-kl-penalty"]


def test_values_are_measured_before_gae_and_only_there() -> None:
    assert names(build("ppo"))["credit"] == ["values", "gae", "whiten-advantage"]
    assert build("ppo").required_models() == {"critic", "reference"}
    for other in ("grpo", "rloo", "remax", "reinforce++"):
        assert "values" not in names(build(other))["credit"] and "critic" not in build(other).required_models()


def test_weights_come_first_in_select_or_stand_alone() -> None:
    assert names(build("grpo"))["select"] == ["all-steps"]
    assert names(build("grpo+drop-equal-groups+drop-unended"))["select"] == [
        "all-steps",
        "drop-equal-groups",
        "drop-unended",
    ]


def test_a_part_that_gives_the_weight_itself_is_enough() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OwnWeight(Part):
        stage: ClassVar[Stage] = "select"
        gives: ClassVar[frozenset[str]] = frozenset({"weight"})

    assert names(base(select=(OwnWeight(),)).check())["select"] == ["own-weight"]


def test_a_measuring_part_that_is_listed_is_not_put_in_again() -> None:
    assert names(base(select=(AllSteps(), DropEqualGroups())).check())["select"] == ["all-steps", "drop-equal-groups"]


# ------------------------------------------------------------------------------------------------------- composing


def test_grpo_with_the_leave_one_out_of_rloo() -> None:
    mixed = build("grpo+rloo")
    assert names(mixed)["credit"] == ["leave-one-out"]
    assert names(mixed)["improve"] == ["policy-gradient", "reference-kl", "optimize"]  # one objective, in its old place
    assert mixed.optimize == build("grpo").optimize and mixed.collect == build("grpo").collect
    assert mixed.name == "grpo+rloo"


def test_ppo_with_rloo_drops_the_value_loss_that_has_nothing_to_learn() -> None:
    mixed = build("ppo(completions_per_prompt=4)+rloo")
    assert mixed.dropped == ("value-loss",) and not mixed.required_models() & {"critic"}
    assert "value-loss" not in names(mixed)["improve"] and "values" not in names(mixed)["credit"]


def test_an_answer_without_siblings_cannot_be_judged_against_them() -> None:
    for spec in ("ppo+rloo", "remax+group-advantage", "reinforce++(baseline=group)"):
        with pytest.raises(UserError, match="only one is sampled; set --completions-per-prompt 4"):
            build(spec)


def test_a_value_loss_without_targets_says_what_it_misses() -> None:
    with pytest.raises(UserError) as error:
        build("grpo+value-loss")
    assert str(error.value) == (
        "grpo+value-loss: part 'value-loss' needs the field 'value_target', which nobody gives; "
        "'egae' or 'gae' or 'step-advantage' would give it."
    )


def test_grpo_with_remax_draws_greedy_twins_and_keeps_its_batch() -> None:
    mixed = build("grpo(prompts_per_step=5)+remax")
    assert names(mixed)["collect"] == ["sample-with-greedy-baseline"] and names(mixed)["credit"] == ["greedy-baseline"]
    assert mixed.collect.greedy_baseline is True  # type: ignore[attr-defined]
    assert (mixed.collect.prompts_per_step, mixed.collect.completions_per_prompt) == (5, 8)  # type: ignore[attr-defined]
    assert names(mixed)["improve"] == ["clipped-surrogate", "reference-kl", "optimize"]


@pytest.mark.parametrize("spec", ["reinforce+++drop-equal-groups", "reinforce++ + drop-equal-groups".replace(" ", "")])
def test_a_name_that_contains_a_plus(spec: str) -> None:
    mixed = build(spec)
    assert names(mixed)["credit"] == ["batch-advantage"] and names(mixed)["select"] == [
        "all-steps",
        "drop-equal-groups",
    ]


def test_reinforce_pp_may_stand_at_either_end() -> None:
    assert names(build("grpo+reinforce++"))["credit"] == ["batch-advantage"]
    mixed = build("grpo+reinforce++(baseline=group)+overlong-penalty(overlong_cache=3)")
    assert "overlong-penalty" in names(mixed)["score"]
    assert mixed.hyperparameters()["batch-advantage.baseline"] == "group"
    assert mixed.hyperparameters()["overlong-penalty.overlong_cache"] == 3


def test_a_part_with_hyperparameters() -> None:
    mixed = build("grpo+reference-kl(kl_loss_coef=0.04, kl_estimator=k2)")
    assert mixed.terms[1] == ReferenceKL(kl_loss_coef=0.04, kl_estimator="k2")
    assert len(mixed.terms) == 2  # it replaced grpo's own
    assert mixed.required_models() == {"reference"}


def test_hyperparameters_of_a_part_are_its_own() -> None:
    mixed = build("grpo+reference-kl(kl_loss_coef=0.04,aggregation=constant)")
    assert mixed.hyperparameters()["reference-kl.aggregation"] == "constant"
    assert mixed.hyperparameters()["clipped-surrogate.aggregation"] == "seq-mean-token-mean"


def test_new_parts_come_last_and_the_same_part_replaces() -> None:
    mixed = build("ppo+entropy-bonus+nll")
    assert names(mixed)["improve"] == ["clipped-surrogate", "value-loss", "entropy-bonus", "nll", "optimize"]
    twice = base() + EntropyBonus(entropy_coef=0.1) + EntropyBonus(entropy_coef=0.2)
    assert [t for t in twice.terms if isinstance(t, EntropyBonus)] == [EntropyBonus(entropy_coef=0.2)]
    assert twice.name == "mine+entropy-bonus+entropy-bonus"


def test_another_optimizer_keeps_the_settings_that_it_shares() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Momentum(Optimize):
        momentum: float = hyperparameter(0.9, "of the steps", low=0)

    mixed = base(optimize=Optimize(epochs=7)) + Momentum(momentum=0.5)
    assert isinstance(mixed.optimize, Momentum) and (mixed.optimize.epochs, mixed.optimize.momentum) == (7, 0.5)


def test_composing_leaves_its_pieces_alone() -> None:
    one = build("grpo")
    before = one.hyperparameters()
    _ = (one + build("rloo")).set("learning_rate", "1")
    assert one.hyperparameters() == before and one == build("grpo")


# ------------------------------------------------------------------------------------------------ hyperparameters


def test_set_by_field_reaches_every_part_that_has_it() -> None:
    found = build("grpo").set("aggregation", "token-mean").hyperparameters()
    assert found["clipped-surrogate.aggregation"] == found["reference-kl.aggregation"] == "token-mean"


@pytest.mark.parametrize("key", ["reference-kl.aggregation", "reference_kl.aggregation"])
def test_set_by_part_and_field_reaches_that_part(key: str) -> None:
    found = build("grpo").set(key, "token-mean").hyperparameters()
    assert found["clipped-surrogate.aggregation"] == "seq-mean-token-mean"
    assert found["reference-kl.aggregation"] == "token-mean"


def test_dashes_and_underscores_are_one() -> None:
    assert build("grpo", {"clip-range-high": "0.28"}) == dataclasses.replace(build("grpo", {"clip_range_high": 0.28}))
    assert (
        build("grpo", {"clipped-surrogate.clip-range": "0.3"}).hyperparameters()["clipped-surrogate.clip_range"] == 0.3
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("epochs", "1e1", 10),
        ("clip_range_high", "none", None),
        ("clip_range_high", "0.28", 0.28),
        ("kl_estimator", "k1", "k1"),
        ("scale", "population-std", "population-std"),
        ("temperature", 0.5, 0.5),
    ],
)
def test_text_becomes_what_the_field_holds(key: str, text: Any, value: Any) -> None:
    found = [v for k, v in build("grpo", {key: text}).hyperparameters().items() if k.endswith(f".{key}")]
    assert set(found) == {value} and all(type(v) is type(value) for v in found)


def test_booleans() -> None:
    for text, value in (("true", True), ("No", False), ("1", True), ("0", False)):
        assert build("remax", {"kl_to_go": text}).hyperparameters()["greedy-baseline.kl_to_go"] is value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clip_rnage", "0.1", "grpo has no hyperparameter 'clip_rnage'. Did you mean 'clip_range'"),
        ("gae.clip_range", "0.1", "grpo has no hyperparameter 'gae.clip_range'"),
        ("clip_range", "-0.1", "clipped-surrogate.clip_range is -0.1 but must be above 0"),
        ("clip_range", 0, "clipped-surrogate.clip_range is 0.0 but must be above 0"),
        ("top_p", "1.5", "sample-responses.top_p is 1.5 but must be above 0 and at most 1"),
        ("prompts_per_step", "0", "prompts_per_step is 0 but must be at least 1"),
        ("dual_clip", "1", "dual_clip is 1.0 but must be above 1"),
        ("learning_rate", "nan", "learning_rate is nan but must be at least 0"),
        ("learning_rate", "inf", "learning_rate is inf but must be at least 0"),
        ("learning_rate", "fast", "optimize.learning_rate is 'fast' but must be a float"),
        ("epochs", "2.5", "optimize.epochs is '2.5' but must be an int"),
        ("epochs", "inf", "optimize.epochs is 'inf' but must be an int"),
        ("epochs", "", "optimize.epochs is '' but must be an int"),
        ("aggregation", "mean", "aggregation is 'mean' but must be one of token-mean, seq-mean-token-mean"),
        ("scale", "sample", "group-advantage.scale is 'sample' but must be one of std, population-std, none"),
    ],
)
def test_bad_hyperparameters_are_told(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        build("grpo", {key: value})
    assert words in str(error.value)


def test_a_range_holds_also_in_python() -> None:
    with pytest.raises(UserError, match=r"value-loss.value_coef is -1 but must be at least 0"):
        ValueLoss(value_coef=-1)


def test_parse_value_knows_tuples_and_optionals() -> None:
    assert (
        parse_value("p", "f", tuple[str, ...], "a,b") == ("a", "b") and parse_value("p", "f", tuple[str, ...], "") == ()
    )
    assert parse_value("p", "f", int | None, "null") is None and parse_value("p", "f", Literal["a"] | None, "a") == "a"
    with pytest.raises(UserError, match=r"p.f is 'maybe' but must be a bool"):
        parse_value("p", "f", bool, "maybe")


@pytest.mark.parametrize(
    ("name", "kebabed"),
    [
        ("GAE", "gae"),
        ("LeaveOneOut", "leave-one-out"),
        ("TokenKLPenalty", "token-kl-penalty"),
        ("NLL", "nll"),
        ("K3", "k3"),
    ],
)
def test_kebab(name: str, kebabed: str) -> None:
    assert kebab(name) == kebabed


def test_hyperparameters_name_every_hyperparameter_once_with_its_part() -> None:
    found = build("ppo(gae_lambda=0.9,epochs=3)", {"kl_coef": 0.3}).hyperparameters()
    assert found["gae.gae_lambda"] == 0.9 and found["optimize.epochs"] == 3 and found["token-kl-penalty.kl_coef"] == 0.3
    total = sum(len(dataclasses.fields(p)) for p in build("ppo").parts())
    assert len(found) == total
    for part in build("ppo").parts():
        for field in dataclasses.fields(part):
            assert field.metadata["help"], f"{part.name}.{field.name} has no help"
