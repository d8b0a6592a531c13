"""Run folders, read back: configuration, metrics, samples and summary of one run or of a comparison.

Reading is tolerant where a killed run leaves things half done (no summary, a cut last line) and strict where a folder
is something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.report.json_lines import read_lines
from polyrl.report.labels import DOMAINS
from polyrl.report.problems import Problem, find_problems
from polyrl.report.records import Records
from polyrl.runtime.chart import Chart
from polyrl.runtime.files import read_json, read_yaml
from polyrl.runtime.metric import Metric
from polyrl.settings import with_present_names

DEFAULT_METRIC = Metric().key


@dataclass(frozen=True)
class Run:
    """One run folder. `metrics` holds one mapping an iteration, in order, with finite numbers only."""

    path: Path
    label: str
    seed: int
    config: dict[str, Any]
    metrics: Sequence[dict[str, float]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    skipped_lines: int = 0

    def __post_init__(self) -> None:
        """Keep metrics by column."""
        if not isinstance(self.metrics, Records):
            object.__setattr__(self, "metrics", Records(self.metrics))

    @property
    def records(self) -> Records:
        """`metrics` by column."""
        assert isinstance(self.metrics, Records)
        return self.metrics

    @property
    def domain(self) -> str:
        """The domain that the run's task belongs to; folders of before there were several are of language."""
        domain = self.config.get("domain")
        return domain if domain in DOMAINS else "language"

    @property
    def status(self) -> str:
        """`finished`, `failed`, or `unfinished` for a run that is still going or was killed."""
        status = self.summary.get("status")
        return status if status in ("finished", "failed") else "unfinished"

    @property
    def error(self) -> str:
        """Why the run failed, or an empty string."""
        return str(self.summary.get("error") or "")

    @property
    def warnings(self) -> list[str]:
        """What the run's own health checks said, oldest first."""
        warnings = self.summary.get("warnings")
        return [str(warning) for warning in warnings] if isinstance(warnings, list) else []

    def series(self, key: str) -> list[float]:
        """Logged values of `key`, oldest first, without the iterations that lack it."""
        return self.records.series(key)

    def untimed(self) -> list[dict[str, Any]]:
        """What it logged, without what clocks said."""

        def by_clock(key: str) -> bool:
            return key.partition("/")[0] == "seconds" or key.endswith("_per_second")

        return [{key: x for key, x in row.items() if not by_clock(key)} for row in self.metrics]

    def start(self, key: str) -> float | None:
        """Value of `key` before training, or None."""
        value = _number(_mapping(self.summary.get("start")).get(key))
        if value is None and self.metrics and self.metrics[0].get("iteration") == 0:
            value = self.metrics[0].get(key)
        return value

    def final(self, key: str) -> float | None:
        """Value of `key` at the end of a finished run; None when the run did not finish or logged no such number."""
        if self.status != "finished":
            return None
        value = _number(_mapping(self.summary.get("final")).get(key))
        return value if value is not None else next(iter(reversed(self.series(key))), None)

    def spent(self, key: str) -> float | None:
        """What the run spent of `samples`, `tokens`, `steps`, `reward_calls` or `seconds`."""
        value = _number(_mapping(self.summary.get("spent")).get(key))
        return value if value is not None else next(iter(reversed(self.series(key))), None)

    @property
    def seconds_by_stage(self) -> dict[str, float]:
        """Wall time by stage, in seconds."""
        stages = {str(k): _number(v) for k, v in _mapping(self.summary.get("seconds_by_stage")).items()}
        return {name: seconds for name, seconds in stages.items() if seconds is not None}

    @property
    def peak_memory_bytes(self) -> float | None:
        """Largest memory of the process, in bytes."""
        return _number(self.summary.get("peak_memory_bytes"))


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: one per method and seed. A single run is a comparison of one."""

    path: Path
    name: str
    runs: list[Run]
    methods: list[str]
    seeds: list[int]
    metric: Metric
    task: str
    budget: dict[str, Any]
    command: str
    started: str = ""
    finished: str = ""
    note: str = ""  # what its maker had to say, such as why it is as large as it is
    problems: list[str] = field(default_factory=list)
    asked: list[Problem] = field(default_factory=list)
    """The problems that the runs were given: usually one. Only runs of one problem are compared."""
    metrics: list[Metric] = field(default_factory=list)
    """Of each of them its metric, with its own lines."""

    @property
    def domain(self) -> str:
        """The domain of the runs, which says what a step and an episode are called."""
        return next((run.domain for run in self.runs), "language")

    @property
    def charts(self) -> list[Chart]:
        """What the runs' task asks to be drawn besides curves over time; what is malformed in a folder is left out."""
        found: dict[str, Chart] = {}
        for run in self.runs:
            stated = run.config.get("charts")
            for values in stated if isinstance(stated, list) else []:
                with suppress(KeyError, TypeError, ValueError, AttributeError):
                    chart = Chart.read(values)
                    found.setdefault(chart.title, chart)
        return [*found.values()]

    def problem_of(self, method: str) -> int:
        """Which of `asked` the runs of `method` were given; no method has runs of two."""
        first = next(i for i, run in enumerate(self.runs) if run.label == method)
        return next((n for n, problem in enumerate(self.asked) if first in problem.runs), 0)

    def metric_of(self, method: str) -> Metric:
        """The metric with the lines of the problem that `method` was given."""
        return self.metrics[self.problem_of(method)] if self.metrics else self.metric

    def comparable(self, first: str, second: str) -> bool:
        """Whether two methods were given one problem."""
        return self.problem_of(first) == self.problem_of(second)

    def of(self, method: str) -> list[Run]:
        """Runs of `method`, by seed."""
        return [run for run in self.runs if run.label == method]

    @cached_property
    def finals(self) -> dict[str, dict[int, float]]:
        """Final value of the metric by method and seed, finished runs only."""
        values = {m: {run.seed: run.final(self.metric.key) for run in self.of(m)} for m in self.methods}
        return {m: {s: v for s, v in seeds.items() if v is not None} for m, seeds in values.items()}

    @cached_property
    def starts(self) -> dict[str, dict[int, float]]:
        """Value of the metric before training by method and seed."""
        values = {m: {run.seed: run.start(self.metric.key) for run in self.of(m)} for m in self.methods}
        return {m: {s: v for s, v in seeds.items() if v is not None} for m, seeds in values.items()}


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}: restore it or leave this run out.") from None


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what a resumed run did again: a line of iteration k replaces every earlier line of k and beyond."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        iteration = _number(row.get("iteration"))
        if iteration is None:
            continue
        while kept and kept[-1]["iteration"] >= iteration:
            kept.pop()
        kept.append(row)
    return kept


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def load_run(path: Path) -> Run:
    """Read one run folder. Raises `UserError` when `path` is no run folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"There is no folder '{path}': give a folder that polyrl train or polyrl compare wrote.")
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"'{path}' is no run folder, it has no config.yaml: give one that polyrl train or polyrl compare wrote."
        )
    config = with_present_names(_read_yaml(path / "config.yaml"))
    rows, skipped = read_lines(path / "metrics.jsonl")
    samples, skipped_samples = read_lines(path / "samples.jsonl")
    seed = config.get("seed")
    return Run(
        path=path,
        label=str(config.get("label") or config.get("method") or path.name),
        seed=seed if isinstance(seed, int) else 0,
        config=config,
        metrics=Records(_in_order(rows)),
        samples=samples,
        summary=_read_summary(path / "summary.json"),
        skipped_lines=skipped + skipped_samples,
    )


def _read_metric(stated: Mapping[Any, Any]) -> Metric:
    """The metric as compare.yaml or config.yaml states it; what is malformed there keeps its default."""
    known: dict[str, Any] = {}
    for name in ("metric", "key", "metric_label", "label", "unit"):
        if stated.get(name) not in (None, "") and not isinstance(stated[name], Mapping):
            known[{"key": "metric", "label": "metric_label"}.get(name, name)] = str(stated[name])
    known["higher_is_better"] = stated.get("higher_is_better") is not False
    known["scale"] = "log" if stated.get("scale") == "log" else "linear"
    lines = {str(name): _number(value) for name, value in _mapping(stated.get("lines")).items()}
    known["lines"] = {name: value for name, value in lines.items() if value is not None}
    target = str(stated.get("target") or "")
    known["target"] = target if target in known["lines"] else ""
    return Metric.read(known)


def _said_metric(stated: Mapping[Any, Any], runs: Sequence[Run]) -> Metric | None:
    """The metric that the comparison or its runs state; None for folders of before there was more than one."""
    if not stated.get("metric"):
        said = [m for run in runs if (m := _mapping(run.config.get("metric"))).get("key")]
        stated = said[0] if said else {}
    if not stated:
        return None
    metric = _read_metric(stated)
    return metric if stated.get("metric_label") or stated.get("label") else replace(metric, label=_called(metric.key))


def _metric(stated: Mapping[str, Any], runs: Sequence[Run]) -> Metric:
    """What decides: stated by the comparison, else by the runs, else the first evaluation that they logged."""
    if metric := _said_metric(stated, runs):
        return metric
    summaries = [_mapping(run.summary.get(part)) for run in runs for part in ("start", "final")]
    logged = {str(key) for run in runs for row in [run.records.keys, *summaries] for key in row}
    evaluations = sorted(k for k in logged if k.startswith("eval/"))
    key = DEFAULT_METRIC if DEFAULT_METRIC in logged or not logged else (evaluations or ["reward"])[0]
    return Metric(key=key, label=_called(key))


def _called(key: str) -> str:
    return key.removeprefix("eval/").replace("_", " ")


def _unique_labels(groups: Sequence[tuple[str, Sequence[Run]]]) -> list[Run]:
    """Join runs of several folders; where two have the same label and seed, the folder's name tells them apart.

    Where their problems tell them apart already (`_told_apart`) they need no folder's name.
    """
    asked = find_problems([run.config for _, group in groups for run in group])
    problem = {i: p.name for p in asked for i in p.runs}
    owners: dict[tuple[str, int, str], int] = {}
    start = 0
    for _, group in groups:
        for key in {(run.label, run.seed, problem[start + i]) for i, run in enumerate(group)}:
            owners[key] = owners.get(key, 0) + 1
        start += len(group)
    clashing = {label for (label, _, _), count in owners.items() if count > 1}
    joined: list[Run] = []
    for name, group in groups:
        arm = re.sub(r"[-_]?seed[-_]?\d+$", "", name) or name
        joined += [replace(run, label=f"{run.label} ({arm})") if run.label in clashing else run for run in group]
    return joined


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The same runs, where a label has runs of several problems with the problem behind it: it is not one method."""
    problems = find_problems([run.config for run in runs])
    of = {i: problem for problem in problems for i in problem.runs}
    given: dict[str, set[str]] = {}
    for i, run in enumerate(runs):
        given.setdefault(run.label, set()).add(of[i].name)
    return [
        replace(run, label=f"{run.label} ({of[i].name})") if len(given[run.label]) > 1 else run
        for i, run in enumerate(runs)
    ]


def _by_method(runs: Sequence[Run], planned: Sequence[str]) -> tuple[list[str], list[Run]]:
    found = list(dict.fromkeys(run.label for run in runs))
    methods = [m for m in planned if m in found] + [m for m in found if m not in planned]
    return methods, sorted(runs, key=lambda run: (methods.index(run.label), run.seed))


def _metrics(metric: Metric, problems: Sequence[Problem], runs: Sequence[Run]) -> tuple[Metric, list[Metric]]:
    """The metric with the lines of all problems, and that of each problem; lines that differ name their problem."""
    if len(problems) < 2:
        return metric, [metric] * len(problems)
    own = [_said_metric({}, [runs[i] for i in problem.runs]) or metric for problem in problems]
    common = {k: v for k, v in own[0].lines.items() if all(m.lines.get(k) == v for m in own)}
    named = []
    for problem, mine in zip(problems, own, strict=True):
        called = {line: line if line in common else f"{line}, {problem.name}" for line in mine.lines}
        lines = {called[line]: value for line, value in mine.lines.items()}
        named.append(replace(mine, lines=lines, target=called.get(mine.target, "")))
    lines = {line: value for mine in named for line, value in mine.lines.items()}
    target = named[0].target if all(mine.target == named[0].target for mine in named) else ""
    return replace(metric, lines=lines, target=target), named


def _build(path: Path, stated: Mapping[str, Any], runs: list[Run], problems: list[str]) -> Comparison:
    # runs of a method file are labelled as it was typed, or by its name alone
    asked_for, labels = [*map(str, stated.get("methods") or [])], {run.label for run in runs}
    planned = [Path(m).stem if m.endswith(".py") and Path(m).stem in labels else m for m in asked_for]
    _, runs = _by_method(runs, planned)
    seeds = sorted({run.seed for run in runs} | {s for s in stated.get("seeds") or [] if isinstance(s, int)})
    present = {(run.label, run.seed) for run in runs}
    missing = [f"{m} seed {s}" for m in planned for s in stated.get("seeds") or [] if (m, s) not in present]
    if missing:
        problems = [*problems, f"No run folder for {', '.join(missing)}."]
    methods, runs = _by_method(_told_apart(runs), planned)
    asked = find_problems([run.config for run in runs])
    metric, metrics = _metrics(_metric(stated, runs), asked, runs)
    budget = stated.get("budget") or (runs[0].config.get("budget") if runs else None)
    command = stated.get("command") or (runs[0].config.get("command") if len(runs) == 1 else "")
    return Comparison(
        path=path,
        name=path.resolve().name,
        runs=runs,
        methods=methods,
        seeds=seeds,
        metric=metric,
        task=_text(stated.get("task") or next((run.config.get("task") for run in runs), "")),
        budget={str(k): v for k, v in _mapping(budget).items()},
        command=_text(command),
        started=_text(stated.get("started")),
        finished=_text(stated.get("finished")),
        note=_text(stated.get("note")),
        problems=problems,
        asked=asked,
        metrics=metrics,
    )


def _read_folder(path: Path) -> tuple[dict[str, Any], list[Run], list[str]]:
    path = Path(path)
    if (path / "config.yaml").is_file() or not path.is_dir():
        return {}, [load_run(path)], []
    stated = _read_yaml(path / "compare.yaml") if (path / "compare.yaml").is_file() else {}
    runs: list[Run] = []
    problems: list[str] = []
    for folder in sorted(p for p in path.iterdir() if (p / "config.yaml").is_file()):
        try:
            runs.append(load_run(folder))
        except UserError as error:  # one unreadable run must not hide the others
            problems.append(f"Left out: {error}")
    for folder in sorted(
        p for p in path.iterdir() if (p / "summary.json").is_file() and not (p / "config.yaml").is_file()
    ):
        problems.append(f"{folder.name} failed before it began: {_read_summary(folder / 'summary.json').get('error')}")
    if not runs:
        said = "has no run in it yet" if stated else "is no run folder, it has neither config.yaml nor compare.yaml"
        raise UserError(f"'{path}' {said}: give a folder that polyrl train or polyrl compare wrote.")
    return stated, runs, problems


def load_comparison(path: Path) -> Comparison:
    """Read a comparison folder, a folder of run folders, or one run folder. Raises `UserError` for anything else."""
    path = Path(path)
    stated, runs, problems = _read_folder(path)
    return _build(path, stated, runs, problems)


def load_folders(folders: Sequence[Path]) -> Comparison:
    """Read run and comparison folders into one comparison. Raises `UserError` for a folder that is neither."""
    if not folders:
        raise UserError("No run folder was given: name at least one folder under runs/.")
    if len(folders) == 1:
        return load_comparison(folders[0])
    read = [(Path(folder), *_read_folder(Path(folder))) for folder in folders]
    runs = _unique_labels([(path.resolve().name, group) for path, _, group, _ in read])
    judged = [m for _, stated, group, _ in read if (m := _said_metric(stated, group))]
    metrics = sorted({m.key for m in judged})
    if len(metrics) > 1:
        raise UserError(f"These folders are judged by different metrics ({', '.join(metrics)}): report them apart.")
    # a line stands beside all results or beside none: on another task it is another optimum
    shared: dict[str, Any] = {}
    if judged:
        common = {k: v for k, v in judged[0].lines.items() if all(m.lines.get(k) == v for m in judged)}
        target = judged[0].target if judged[0].target in common else ""
        shared = replace(judged[0], lines=common, target=target).stated()
    problems = [problem for _, _, _, found in read for problem in found]
    built = _build(Path(folders[0]), shared, runs, problems)
    return replace(built, name=" + ".join(path.resolve().name for path, *_ in read))
