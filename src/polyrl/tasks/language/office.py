"""A small office of four tables that an agent reads and writes by calls, one instruction at a time."""

from __future__ import annotations

import copy
import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from polyrl.tasks.language.base import GeneratedTask, Reward, Row, Session, content, replayed, table_rows

World = dict[str, dict[str, int]]
"""Tables by letter, each with its entries by name."""
Step = tuple[Literal["ls", "get", "set"], str, str, int]
"""A call that works: kind, table, name, value (0 where there is none)."""
Template = Literal["copy", "later", "sum", "pay", "clear"]

TABLES: dict[str, tuple[int, int]] = {"f": (0, 9), "c": (1, 5), "m": (1, 4), "p": (3, 6)}
"""Files, calendar, messages, payments: the smallest and the largest value that an entry has at first. All are
digits: what is to be learned is to look up and to act, not to calculate."""
NAMES = "abcdefgh"
TEMPLATES: tuple[Template, ...] = ("copy", "later", "sum", "pay", "clear")
TURN_LIMIT = 8
"""Calls of a response; the last one ends it, whatever it is."""
MAX_TOKENS = 96
"""Of a response: a call that failed can be made good."""
SKIPPED = 0.35
"""Share of the demonstrations that skip what has to be looked up, and guess."""
ENTRIES_CLEARED = 2
"""Entries of a table that is to be cleared."""

CALL = re.compile(r"(?:(done)\(|([a-z])\.(?:(ls)\(|(get)\(([a-z])|(set)\(([a-z]),(\d{1,3})))\)")


def start_world(table: World) -> World:
    """A copy that shares nothing with `table`: what one response does to its world no other one sees."""
    return copy.deepcopy(table)


class Office:
    """The world of one response. `f.get(a)` is answered by `57;`, `f.set(a,8)` by `k;`, `f.ls()` by the names: `ab;`.

    What cannot be read, and names that there are not, are answered by `E;`. `done()` ends the response. Text is parsed
    and never evaluated; every `)` is a call.
    """

    stop = ")"

    def __init__(self, world: World):
        self.world = start_world(world)
        self.calls = self.errors = self.reads = self.blind = 0
        self.ended = self.done = False

    def reply(self, response: str) -> str | None:
        """Do what `response` ends with, and return the answer."""
        self.calls += 1
        found = CALL.fullmatch(response.rpartition(";")[2].strip())
        answer = self._do(found) if found else None
        self.errors += answer is None
        self.ended = self.done or self.calls >= TURN_LIMIT
        return f"{'E' if answer is None else answer};"

    def _do(self, call: re.Match[str]) -> str | None:
        done, letter, ls, get, read, _, written, value = call.groups()
        if done:
            self.done = True
            return ""
        table = self.world.get(letter)
        if table is None:
            return None
        if ls:
            self.reads += 1
            return "".join(sorted(table))
        if get:
            self.reads += 1
            return str(table[read]) if read in table else None
        self.blind += not self.reads
        if written not in table:
            return None
        table[written] = int(value)
        return "k"

    def report(self) -> dict[str, Any]:
        """Return the calls, the failed ones among them, whether it wrote before it read, the world and its end."""
        told = {"calls": self.calls, "errors": self.errors, "blind_writes": self.blind, "done": self.done}
        return {**told, "world_after": start_world(self.world)}


def checks(row: Row) -> list[bool]:
    """The hidden tests: each target, nothing else changed, `done()` called. `row` has what the session reported."""
    before, after, targets = row["world"], row["world_after"], row["targets"]
    wanted = {(table, name): value for table, name, value in targets}
    rest = all(after[t][n] == v for t, entries in before.items() for n, v in entries.items() if (t, n) not in wanted)
    return [*(after[table][name] == value for (table, name), value in wanted.items()), rest, bool(row["done"])]


@dataclass
class OfficeTask(GeneratedTask):
    """Small jobs in a stateful world: `copy f.a m.b:` is answered by `f.get(a)7;m.set(b,7)k;done()`.

    Four tables, files f, calendar c, messages m and payments p, hold `difficulty` entries each. Their values, and which
    names they have, are not in the prompt; the agent calls, the office answers. Five jobs:

    - `copy f.a m.b:` write the value of one entry into another;
    - `later c.a 4:` add to an entry;
    - `sum m.a m.b m.c:` write the sum of two entries into a third;
    - `pay p.a p.b 3:` take from one entry, add to another;
    - `clear f:` set two entries to 0, the only ones of their table; their names have to be listed.

    The reward is the share of hidden tests that hold at the end; right is a response for which all do. A third of
    the demonstrations skips what has to be looked up, and guesses.
    """

    difficulty: int = 3
    """Entries of a table, 3 to 6."""
    start_accuracy: float | None = 0.55

    name = "office"
    step_end = ";"
    evaluation_greedy = False  # the most probable call hides how often others are made
    evaluation_prompts = 300
    family: ClassVar[str] = "office"
    difficulties: ClassVar[range] = range(3, 7)

    def __post_init__(self) -> None:
        """Check the settings and put the reward in place."""
        super().__post_init__()
        self.max_tokens = MAX_TOKENS
        self.rewards = [Reward("checks", self.passed_reward)]

    def problem(self, rng: random.Random) -> Row:
        """Draw a job, the world, and the guesses of a demonstration that looks nothing up."""
        template = rng.choice(TEMPLATES)
        world: World = {}
        for letter, (low, high) in TABLES.items():
            world[letter] = {name: rng.randint(low, high) for name in sorted(rng.sample(NAMES, self.difficulty))}
        guess = {letter: rng.randint(0, 9) for letter in TABLES}
        steps: list[Step] = []
        blind: list[Step] = []
        if template == "copy":
            (t, a), (u, b) = self._entry(rng, world), self._entry(rng, world, "fm")
            while (t, a) == (u, b):
                u, b = self._entry(rng, world, "fm")
            prompt, steps = f"copy {t}.{a} {u}.{b}:", [("get", t, a, 0), ("set", u, b, world[t][a])]
            blind = [("set", u, b, guess[t])]
        elif template == "later":
            (t, a), n = self._entry(rng, world, "c"), rng.randint(1, 4)
            prompt, steps = f"later {t}.{a} {n}:", [("get", t, a, 0), ("set", t, a, world[t][a] + n)]
            blind = [("set", t, a, guess[t])]
        elif template == "sum":
            a, b, c = rng.sample([*world["m"]], 3)
            m = world["m"]
            prompt = f"sum m.{a} m.{b} m.{c}:"
            steps = [("get", "m", a, 0), ("get", "m", b, 0), ("set", "m", c, m[a] + m[b])]
            blind = [("get", "m", a, 0), ("set", "m", c, guess["m"])]
        elif template == "pay":
            (a, b), n, p = rng.sample([*world["p"]], 2), rng.randint(1, 3), world["p"]
            prompt = f"pay p.{a} p.{b} {n}:"
            out: list[Step] = [("get", "p", a, 0), ("set", "p", a, p[a] - n)]
            steps = [*out, ("get", "p", b, 0), ("set", "p", b, p[b] + n)]
            blind = [*out, ("set", "p", b, guess["p"])]
        else:
            t = rng.choice([*TABLES])
            names = sorted(rng.sample(NAMES, ENTRIES_CLEARED))
            world[t] = {name: rng.randint(*TABLES[t]) for name in names}
            prompt, steps = f"clear {t}:", [("ls", t, "", 0), *(("set", t, n, 0) for n in names)]
            blind = [("set", t, n, 0) for n in sorted(rng.sample(NAMES, ENTRIES_CLEARED))]
        targets = [[t, n, value] for kind, t, n, value in steps if kind == "set"]
        row: Row = {"prompt": prompt, "template": template, "world": world, "targets": targets}
        return {**row, "steps": [*map(list, steps)], "blind": [*map(list, blind)], "skips": rng.random() < SKIPPED}

    @staticmethod
    def _entry(rng: random.Random, world: World, tables: str = "".join(TABLES)) -> tuple[str, str]:
        table = rng.choice(tables)
        return table, rng.choice([*world[table]])

    def canonical(self, row: Row) -> str:
        """Return the job and what of the world it touches."""
        return f"{row['prompt']} {row['targets']}"

    def longest(self) -> int:
        """Return the length of the longest job, a payment."""
        return 2 * len("p.get(a)4;p.set(b,5)k;") + len("done()")

    def session(self, row: Row) -> Office:
        """Return an office with a copy of the row's world."""
        return Office(row.get("world", {}))

    def worked(self, row: Row) -> str:
        """Return the calls that do the job, with their answers, up to `done()`."""
        return self._written(row, row["steps"])

    def demonstrated(self, row: Row) -> str:
        """Return the same, or calls that guess, for those that skip."""
        return self._written(row, row["blind"] if row["skips"] else row["steps"])

    def _written(self, row: Row, steps: list[list[Any]]) -> str:
        session, text = self.session(row), ""
        for kind, table, name, value in steps:
            text += f"{table}.{kind}({name}{f',{value}' if kind == 'set' else ''})"
            text += session.reply(text) or ""
        return text + "done()"

    def seen(self, row: Row, completion: str) -> Row:
        """The row with what its session reported; where it was not sampled here, with what a replay does."""
        if "world_after" in row:
            return row
        session = replayed(self, row, completion)
        assert isinstance(session, Session)
        told = session.report()
        over = completion.rstrip().endswith("done()") and completion.count("done()") == 1
        return {**row, **told, "done": told["done"] and over}  # nothing follows the end where a response is sampled

    def passed_reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return the share of tests that each completion passes."""
        rows = zip(table_rows(prompts, columns), completions, strict=True)
        passed = [checks(self.seen(row, content(c))) for row, c in rows]
        return [sum(p) / len(p) for p in passed]

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether all tests pass."""
        return all(checks(self.seen(row, completion)))

    def expected(self, row: Row) -> str:
        """Return the last call that writes."""
        table, name, value = row["targets"][-1]
        return f"{table}.set({name},{value})"

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return the calls, the share of them that failed, and whether it wrote before it looked anything up."""
        told = self.seen(row, completion)
        calls = told["calls"]
        failed = told["errors"] / max(1, calls)
        return {"tool_calls": float(calls), "failed_calls": failed, "blind_writes": float(told["blind_writes"] > 0)}
