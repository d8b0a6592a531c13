"""`polyrl trace`: one iteration stage by stage, what each part did to this batch and what is new in the paper."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from torch import Tensor

from polyrl.cli import excerpts, responses, tokens, update_lists
from polyrl.cli.explain import console, first_sentence, part_name, stage_heading, stream_heading, title
from polyrl.cli.fields import field_table
from polyrl.cli.update_lists import written
from polyrl.core.experience import Experience
from polyrl.core.fields import Field, documented
from polyrl.core.update import Step
from polyrl.parts.optimize import Optimize
from polyrl.parts.tools import turns
from polyrl.recipe import STAGES, Part, Recipe, Stage, Term, options
from polyrl.report.labels import STEP, metric_label
from polyrl.run_state.user_data import UserDataRunState
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import duration

STARTS = {"language": "its starting model", "operations": "an untrained policy", "control": "an untrained policy"}
LOGGED = ("reward", "episode/return", "cost", "loss", "kl", "entropy", "perplexity", "value/explained_variance")
"""What of the iteration's metrics the last line shows."""
TOLD = ("seconds/", "grad_norm/", "loss/")
TOLD_ALONE = {"ratio", "clip_ratio", "approx_kl", "logprob_gap", "learning_rate", "select/steps", *LOGGED}
"""Metrics that other lines tell."""
SAME_POLICY = 1e-4
"""Log-probabilities, nats, that differ by less are of one policy: the difference is rounding."""


@dataclasses.dataclass
class Tracer:
    """One iteration as it is printed.

    Attributes:
        out: where to.
        loop: the run.
        domain: of the task.
        example: language: the responses that are shown.
        seen: stages whose headings stand.
        measured: metrics that have been told.
        rho: log-ratios of the pairs that are shown, before the update.
        spent: optimizer steps before the iteration.
        stream: the named stream whose heading stood last.
    """

    out: Console
    loop: Any
    domain: str
    example: responses.Example = dataclasses.field(default_factory=responses.Example)
    seen: set[Stage] = dataclasses.field(default_factory=set)
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    rho: dict[int, float] = dataclasses.field(default_factory=dict)
    spent: int = 0
    stream: str = ""

    @property
    def recipe(self) -> Recipe:
        """What runs."""
        return self.loop.recipe  # type: ignore[no-any-return]

    @functools.cached_property
    def known(self) -> dict[str, Field]:
        """What is known of the fields that the recipe's parts give."""
        policy = () if self.recipe.policy is None else (self.recipe.policy,)
        return documented(map(type, (*policy, *self.recipe.parts())))

    @property
    def tokenizer(self) -> Any:
        """What reads the run's tokens; None where there are none."""
        run_state = self.loop.run_state
        return run_state.reader.tokenizer if isinstance(run_state, UserDataRunState) else None

    def observe(self, stage: Stage, part: Part, before: Experience | None, after: Experience, seconds: float) -> None:
        """Print what one part did."""
        for earlier in STAGES[: STAGES.index(stage) + 1]:  # stages without parts are told too
            if earlier not in self.seen:
                self.seen.add(earlier)
                if earlier == stage or not self.recipe.updates or earlier in self.recipe.notes:
                    self.out.print(stage_heading(earlier, self.recipe))
        if stage == "improve":
            self._improve(after, seconds)
            return
        if self.stream != self.loop.context.stream:
            self.stream = self.loop.context.stream
            self.out.print(stream_heading(self.stream, self.recipe))
        changed = responses.changed_fields(before, after)
        moved = responses.other_rows(part, before, changed)
        told = [name for name in changed if not moved or before is None or name not in before]
        self._part(part, before, after, told, seconds)
        for sentence in self._sentences(part, None if moved else before, after, changed, moved):
            self._say(sentence)
        for block in self._excerpts(part, before, after, changed, moved):
            self.out.print(block)
        paired = [term for term in self.recipe.terms if term.grouped_by == "pair" and "logprob" in term.wants]
        if paired and not self.rho and paired[0].required() <= set(after.fields()):
            self.rho = excerpts.log_ratios(after, self.loop.run_state)

    def _say(self, text: Text | str, indent: int = 4, style: str = "") -> None:
        """A line, or several that begin alike."""
        said = Text(text, style=style) if isinstance(text, str) else text
        self.out.print(Padding(said, (0, 0, 0, indent), expand=False))

    # --------------------------------------------------------------------------------------------- one part

    def _part(
        self, part: Part, before: Experience | None, after: Experience, changed: Sequence[str], seconds: float
    ) -> None:
        line = part_name(part, self.recipe)
        line.stylize("bold")
        line.append(f"  {first_sentence(type(part))}")
        line.append(f"  {1000 * seconds:.0f} ms", style="dim")
        self._say(line, 2)
        needs = sorted(part.required())
        if needs:
            self._say(f"reads {', '.join(needs)}", style="dim")
        if changed:
            self.out.print(field_table(before, after, changed, self.known, self.out.width))
        if said := self._news():
            self._say(f"measured: {said}")

    def _credit_of(self, step: Step | None) -> None:
        """What parts of credit within a step of the list gave, the first time that it ran."""
        for (owner, name), (before, after) in (self.loop.context.credited or {}).items():
            if step is not None and owner == step.name:
                changed = [f for f in after.fields() if f not in before or after[f] is not before[f]]
                self._say(name, style="dim")
                self.out.print(field_table(before, after, changed, self.known, self.out.width))

    def _news(self, skip: frozenset[str] = frozenset()) -> str:
        """Metrics that are new since this was asked last, in words."""
        metrics: Mapping[str, float] = self.loop.context.metrics
        found = []
        for key, value in metrics.items():
            if self.measured.get(key) == value or key in skip or key == "select/steps" or key.startswith("seconds/"):
                continue
            found.append(metric_words(self.domain, key, value))
        self.measured = dict(metrics)
        return "; ".join(found)

    def _sentences(
        self, part: Part, before: Experience | None, after: Experience, changed: Sequence[str], moved: bool
    ) -> Iterator[str]:
        """What the numbers of the table do not say by themselves."""
        if part.stage == "collect" and "mask" in after and "present" in after:
            said = after["present"] & ~after["mask"]
            if bool(said.any()):
                number = turns(after["mask"], after["present"]).amax(1) + 1
                share = 100 * int(said.sum()) / int(after["present"].sum())
                yield (
                    f"{float(number.float().mean()):.2g} turns a response, at most {int(number.max())}: {share:.0f}% "
                    "of its tokens are what tools said; they are read, and never trained on"
                )
        if before is not None and not changed:
            yield "it leaves this batch as it is"
        if "advantage" in changed and not bool(after["advantage"].any()):
            yield "every advantage of this batch is 0"
        if "ref_logprob" in changed and not moved and "behaviour_logprob" in after:
            gap = (after["behaviour_logprob"] - after["ref_logprob"])[after["mask"]].abs()
            if len(gap) and float(gap.max()) < SAME_POLICY:
                yield "the policy still is the reference: every log-ratio and every KL is 0 but for rounding"
        if part.stage == "select" and {"weight", "value_weight"} & set(changed):
            yield counted(after, before, self.domain)

    # ----------------------------------------------------------------------------------------------- a few rows

    def _excerpts(
        self, part: Part, before: Experience | None, after: Experience, changed: Sequence[str], moved: bool
    ) -> Iterator[Any]:
        """What a part has done, on a few real rows."""
        if {"pair", "preferred"} <= set(after.fields()) and (before is None or "preferred" not in before):
            yield excerpts.preference_pairs(after, tokenizer=self.tokenizer)
            return
        if "completion" in after.columns and "group" in after and "greedy" in after:
            yield from self._responses(part, before, after, changed, moved)
        elif part.stage == "collect":
            if block := excerpts.steps(after):
                yield block
        elif "advantage" in part.gives and "advantage" in after:
            names = ("action", "reward", "value", "advantage")
            if block := excerpts.steps(after, names, "what each step will be pushed by"):
                yield block
        elif not part.measures:
            given = [name for name in changed if name in part.gives]
            if given and (block := excerpts.steps(after, ("action", *given), "on a few rows")):
                yield block

    def _responses(
        self, part: Part, before: Experience | None, after: Experience, changed: Sequence[str], moved: bool
    ) -> Iterator[Any]:
        """Responses of the example, whole and token by token."""
        if moved and before is not None:
            sentence, table = responses.drawn(before, after, self.example.prompt_rows(before))
            self._say(sentence)
            yield table
            return
        old = before if part.stage != "collect" else None
        given = [name for name in changed if name in part.gives]
        others = self.example.follow(old, after, given)
        rows = self.example.rows(after)
        fields = responses.row_fields(part, after, changed)
        if part.stage == "collect" or fields:
            many = len({after["group"][i].item() for i in rows}) > 1
            asked = "some prompts" if many else "one prompt"
            caption = f"{asked} and what was sampled for {'them' if many else 'it'}"
            if part.stage != "collect":
                caption = "others, of which there is more to see" if others else "the same responses"
            yield responses.completions(after, rows, caption, fields, old, self.tokenizer)
        names = tokens.token_fields(part, old, after, changed)
        real = [name for name in names if name in changed and _really(old, after, name)]
        whole = part.stage == "score" and "score" in changed  # paid once, at the last token: the table above says it
        logprobs = {name for name, field in self.known.items() if field.unit == "nats"}
        if (
            whole
            or (part.stage == "collect" and all(name in logprobs for name in real if name in self.known))
            or ("advantage" in real and not bool(after["advantage"].any()))
        ):
            return
        if (part.name in self.recipe.adds and real) or "advantage" in real:
            caption = "what each token will be pushed by:" if "advantage" in real else "token by token:"
            yield tokens.token_table(after, old, rows, names, self.tokenizer, logprobs, caption)

    # --------------------------------------------------------------------------------------------------- improve

    def _improve(self, experience: Experience, seconds: float) -> None:
        recipe, metrics, out = self.recipe, self.loop.context.metrics, self.out
        for term in recipe.terms:
            line = part_name(term, recipe)
            line.stylize("bold")
            line.append(f"  {first_sentence(type(term))}")
            self._say(line, 2)
            self._say(_term_facts(term, metrics), style="dim")
        if recipe.updates:
            context = self.loop.context
            for line, step in update_lists.traced(recipe, context.run_state.models, context.sources, metrics):
                self._say(line, 2)
                self._credit_of(step)
            if news := self._news(frozenset(k for k in metrics if k.startswith(TOLD))):
                self._say(f"measured, as means over the iteration: {news}")
            return
        o = recipe.improver
        took = f"  {duration(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}"
        name = part_name(o, recipe)
        name.stylize("bold")
        self._say(Text.assemble(name, f"  {first_sentence(type(o))}", (took, "dim")), 2)
        if isinstance(o, Optimize):
            self._gradient_steps(o, experience)
        else:
            hyperparameters = ", ".join(f"{f.name}={written(getattr(o, f.name))}" for f in dataclasses.fields(o))
            logged = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if not k.startswith("seconds/"))
            for said in (hyperparameters, f"logged: {logged}" if logged else ""):
                if said:
                    self._say(said, style="dim")
        if self.rho:
            moved = excerpts.log_ratios(experience, self.loop.run_state)
            out.print(excerpts.preference_pairs(experience, self.rho, moved, self.tokenizer))

    def _gradient_steps(self, o: Optimize, experience: Experience) -> None:
        context, metrics = self.loop.context, self.loop.context.metrics
        own = [f for f in dataclasses.fields(o) if f.name not in {g.name for g in dataclasses.fields(Optimize)}]
        hyperparameters = ", ".join(f"{f.name}={written(getattr(o, f.name))}" for f in own)
        taken = context.spent.updates - self.spent
        self._say(
            f"{taken} step{'s' * (taken != 1)} of AdamW: {o.epochs} epoch{'s' * (o.epochs > 1)} of {o.minibatches} "
            f"minibatch{'es' * (o.minibatches > 1)}, learning rate {metrics.get('learning_rate', 0):.2g}"
            f"{'; ' * bool(hyperparameters)}{hyperparameters}",
            style="dim",
        )
        norms = {name.removeprefix("grad_norm/"): v for name, v in metrics.items() if name.startswith("grad_norm/")}
        idle = "weight" in experience and not bool((experience["weight"] != 0).any())
        whose = {name: "policy and critic together" if name == "joint" else f"the {name}" for name in norms}
        said = [f"{v:.3g} of {whose[name]}" for name, v in norms.items() if v]
        if said:
            self._say(f"gradient norm {', '.join(said)} (clipped at {o.max_grad_norm:g})", style="dim")
        if idle:
            first = 1 + max((part.setting("critic_pretraining", 0) for part in self.recipe.select), default=0)
            later = f"--iteration {first if first > self.loop.context.iteration else 'N'}"
            self._say(
                "the policy stays as it is: none of its steps counts in this iteration; "
                f"`polyrl trace {self.recipe.name} {later}` explains a later one"
            )
        if {"clip_ratio", "ratio", "approx_kl"} <= metrics.keys():
            step = STEP.get(self.domain, "step")
            unit, away = self._clipped_unit(experience, step), figure(metrics["approx_kl"])
            self._say(
                f"on average over the steps: ratio {metrics['ratio']:.4f}, {100 * metrics['clip_ratio']:.1f}% of "
                f"{unit}s had left the clip range, KL to the sampler {away} nats a {step}",
                style="dim",
            )
        told = frozenset(k for k in metrics if k in TOLD_ALONE or k.startswith(TOLD))
        if said := self._news(told):  # type: ignore[assignment]
            self._say(f"measured: {said}")
        if "logprob_gap" in metrics:
            gap = f"{metrics['logprob_gap']:.1e} nats"
            self._say(f"check: sampler and trainer agree on every log-probability to {gap}", style="dim")

    def _clipped_unit(self, experience: Experience, step: str) -> str:
        """What a ratio belongs to: a response where the policy's term tells one number a row of its clip."""
        for term in self.recipe.terms:
            known = term.wants == {"logprob"} and term.required() <= set(experience.fields())
            if term.slot == "policy-objective" and known:
                told = term.statistics({"logprob": experience["behaviour_logprob"]}, experience).get("clip_ratio")
                return "response" if told is not None and told.dim() == 1 else step
        return step


def trace_method(config: RunConfig, iteration: int = 1, *, recipe: Recipe | None = None) -> None:
    """Run one iteration and explain it: what each part did to which fields, and what that looks like on a few rows.

    Args:
        config: what to run.
        iteration: which one is explained; those before it run in silence.
        recipe: the config's, where it has been made.
    """
    from polyrl.runs import make_loop

    out = console()
    loop, facts = make_loop(config, recipe=recipe, say=lambda text: out.print(Text(text, style="dim")))
    recipe, run_state, domain = loop.recipe, loop.run_state, str(facts.get("domain", "language"))
    out.print(title(config.method, recipe))
    start = f", from {STARTS[domain]}" if domain in STARTS else ""
    which = "One iteration" if iteration == 1 else f"Iteration {iteration}"
    out.print(Text(f"{which} on the task {run_state.task.name}{start}; * marks what the paper adds.", style="dim"))
    if new := whats_new(recipe):
        out.print(Text.assemble(("New here: ", "bold"), new))
    if recipe.models:
        out.print(stage_heading("models", recipe))
        out.print(update_lists.models_summary(recipe))
    if recipe.turns > 1:
        out.print(Text(f"An iteration is {recipe.turns:,} turns of the stages; the last one is shown.", style="dim"))
    if recipe.policy:
        out.print(stage_heading("policy", recipe))
        out.print(Text.assemble("  ", part_name(recipe.policy, recipe), f"  {first_sentence(type(recipe.policy))}"))
        hyperparameters = ", ".join(
            f"{f.name}={written(getattr(recipe.policy, f.name))}" for f in options(recipe.policy)
        )
        out.print(Text(f"    {hyperparameters}", style="dim"))
    for _ in range(iteration - 1):
        loop.iterate()
    before = dict(loop.seconds)
    loop.context.credited = {}
    loop.iterate(Tracer(out, loop, domain, spent=loop.context.spent.updates).observe)
    seconds = {s: loop.seconds.get(s, 0.0) - before.get(s, 0.0) for s in STAGES}
    total = sum(seconds.values()) or 1.0
    shares = "  ".join(f"{s} {100 * took / total:.0f}%" for s, took in seconds.items())
    out.print(Text.assemble("\n", ("Time", "bold"), f"  {total:.2f} s in all: {shares}"))
    left = [f"{k} {figure(loop.context.metrics[k])}" for k in LOGGED if k in loop.context.metrics]
    if left:
        out.print(Text.assemble(("Logged", "bold"), f"  {'  '.join(left)}"))


def _really(before: Experience | None, after: Experience, name: str) -> bool:
    """Whether a field is new, or differs from what it was by more than rounding."""
    if before is None or name not in before or before[name].shape != after[name].shape:
        return True
    return bool(responses.differs(before[name], after[name]).any())


# ------------------------------------------------------------------------------------------------------- in words


def whats_new(recipe: Recipe) -> str:
    """The stages that the paper changes, each with the parts that it adds."""
    said = []
    if own := [name for name in recipe.models if name in recipe.adds]:
        said.append(f"models ({', '.join(own)})")
    for stage, parts in recipe.stages():
        within = [part for _, part in recipe.entries()] if stage == "improve" else []
        names = [part.name for part in (*parts, *within) if part.name in recipe.adds]
        if names:
            said.append(f"{stage} ({', '.join(names)})")
    return "; ".join(said)


def figure(value: float) -> str:
    """Three figures; rounding errors are 0."""
    return "0" if abs(value) < 1e-6 else f"{value:.3g}"


def metric_words(domain: str, key: str, value: float) -> str:
    """A metric as people read it: "Clipped scores 31% of responses"."""
    label, unit, _ = metric_label(domain, key)
    if unit == "share" or (unit.startswith("share of ") and "," not in unit):
        return f"{label} {100 * value:.3g}%{unit.removeprefix('share')}"
    number = "0" if abs(value) < 1e-7 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{label} {number}{f' ({unit})' if unit else ''}"


def counted(after: Experience, before: Experience | None, domain: str) -> str:
    """How much of the batch the losses see: "51 of 2096 tokens in 12 of 64 responses count; all did before"."""
    step = STEP.get(domain, "step")
    row = "response" if domain == "language" else "row"
    mask = after["mask"] if "mask" in after else torch.ones_like(after["weight"], dtype=torch.bool)
    if "greedy" in after:
        mask = mask & ~after["greedy"][:, None]

    def said(weight: Tensor) -> str:
        steps = (weight != 0) & mask
        rows = f"{int(steps.any(1).sum())} of {int(mask.any(1).sum())} {row}s"
        return f"{int(steps.sum())} of {int(mask.sum())} {step}s, in {rows}"

    sentence = f"what counts for the policy: {said(after['weight'])}"
    if before is not None and "weight" in before:
        gone = (before["weight"] != 0) & (after["weight"] == 0) & mask
        sentence += f" ({int(gone.sum())} {step}s were left out here)"
    if "value_weight" in after:
        sentence += f"; for the critic: {said(after['value_weight'])}"
    return sentence


def _term_facts(term: Term, metrics: dict[str, float]) -> str:
    hyperparameters = ", ".join(f"{f.name}={written(getattr(term, f.name))}" for f in dataclasses.fields(term))
    reads = "reads " + ", ".join(sorted(term.required() | term.wants))
    loss = f"loss {metrics.get(f'loss/{term.name}', 0) + 0.0:+.4f}".replace("-0.0000", "+0.0000")
    return "; ".join(filter(None, (loss, hyperparameters, reads)))
