"""Methods of the theory domain: the steps against direct minimization, backups against naive loops, runs, resume."""

from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from conftest import SEED, Command, reached, read_records, run_code
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.loop import Loop
from polyrl.core.update import See, Update
from polyrl.errors import Diverged, NotFinite, UserError
from polyrl.methods.preference.nash_md import mixture
from polyrl.methods.preference.nash_mp import prox_step
from polyrl.methods.preference.self_play import self_play_step
from polyrl.parts.theory import RobustBackup, mirror_policy
from polyrl.run_state.theory import make_run_state, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory.games import win_rates

torch.set_num_threads(1)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def prepared(method: str, task: str, budget: str, seed: int = 0, said: Any = lambda _: None) -> Loop:
    config = RunConfig(method=method, task=task, seed=seed, budget=budget)
    recipe = catalogue.build(method, domain="theory")
    run_state = make_run_state(config, make_task(config, None), recipe, said)  # type: ignore[arg-type]
    return Loop(recipe, run_state, Context(run_state=run_state, seed=seed, budget=Budget.parse(budget)), evaluations=1)


def iterated(method: str, task: str, count: int, seed: int = 0) -> Any:
    """The run state after so many iterations."""
    loop = prepared(method, task, "iterations=1000000", seed)
    for _ in range(count):
        loop.iterate()
    return loop.run_state


def gap(run_state: Any) -> float:
    return float(run_state.evaluate()[0]["eval/kl_to_nash"])


# -------------------------------------------------------------------------------- steps in preference games


RPS, REFERENCE = "rock-paper-scissors", vector(0.5, 0.3, 0.2).log()


def test_nash_mp_known_by_hand() -> None:
    run_state = iterated("nash-mp", RPS, 0)
    rates = win_rates(run_state.task.preference, run_state.log_policy)
    assert rates.tolist() == pytest.approx([0.55, 0.35, 0.6])
    loop = prepared("nash-mp", RPS, "iterations=9")
    loop.iterate()
    assert loop.run_state.log_policy.exp().tolist() == pytest.approx([0.536285, 0.230559, 0.233156], abs=1e-6)
    assert loop.run_state.output_policy.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])  # a half step is no answer
    loop.iterate()
    assert loop.run_state.output_policy.exp().tolist() == pytest.approx([0.503967, 0.235389, 0.260644], abs=1e-6)
    assert loop.context.spent.reward_calls == 2


def test_nash_mp_contracts_as_the_theorem_says() -> None:
    loop = prepared("nash-mp", RPS, "iterations=99")
    found = [gap(loop.run_state)]
    for _ in range(12):
        loop.iterate(), loop.iterate()
        found.append(gap(loop.run_state))
    assert found[:4] == pytest.approx([0.062228, 0.034589, 0.018843, 0.010021], abs=1e-6)
    assert all(b <= a / 1.2 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("eta", [0.05, 0.2, 3.0])
def test_the_prox_step_minimizes_its_objective(eta: float) -> None:
    beta, anchor, rates = 0.1, vector(0.2, 0.5, 0.3).log(), vector(0.6, 0.45, 0.4)

    def objective(x: np.ndarray) -> float:  # P(q > pi) = 1 - <pi, P q>
        pi = torch.log_softmax(torch.tensor(x), -1)
        p = pi.exp()
        far = lambda other: float((p * (pi - other)).sum())  # noqa: E731
        return (1 - float(p @ rates)) / beta + far(REFERENCE) + far(anchor) / eta

    direct = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    found = prox_step(anchor, REFERENCE, rates, beta, eta)
    assert found.exp().tolist() == pytest.approx(torch.softmax(torch.tensor(direct), -1).tolist(), abs=1e-6)


def test_limits_of_the_prox_step() -> None:
    anchor, rates = vector(0.2, 0.5, 0.3).log(), vector(0.6, 0.45, 0.4)
    assert torch.allclose(prox_step(anchor, REFERENCE, rates, 0.1, 1e-12), anchor, atol=1e-9)
    best = torch.log_softmax(REFERENCE + rates / 0.1, -1)
    assert torch.allclose(prox_step(anchor, REFERENCE, rates, 0.1, 1e12), best, atol=1e-9)


def test_nash_md_and_self_play_known_by_hand() -> None:
    run_state = iterated("nash-md(eta=1)", RPS, 1)
    assert run_state.log_policy.exp().tolist() == pytest.approx([0.523082, 0.256958, 0.219960], abs=1e-6)
    run_state = iterated("self-play(eta=0.5)", RPS, 1)
    assert run_state.log_policy.exp().tolist() == pytest.approx([0.542223, 0.218078, 0.239700], abs=1e-6)
    cyclic = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]], dtype=torch.float64)
    present = vector(0.4, 0.35, 0.25).log()
    rates = win_rates(cyclic, present)
    assert rates.tolist() == pytest.approx([0.565, 0.415, 0.515])
    found = self_play_step(present, REFERENCE, rates, 0.3, 1.0)
    assert found.exp().tolist() == pytest.approx([0.456092, 0.306732, 0.237176], abs=1e-6)
    # INPO's loss, weighted least squares over all ordered pairs, has this minimizer
    pi, weights = present.exp(), torch.outer(present.exp(), present.exp()) * cyclic * 2

    def loss(x: np.ndarray) -> float:
        new = torch.tensor(x)
        h = new - 0.3 * REFERENCE - 0.7 * present
        return float((weights * (h[:, None] - h[None] - 0.5) ** 2).sum())

    fitted = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    assert torch.softmax(torch.tensor(fitted), -1).tolist() == pytest.approx(found.exp().tolist(), abs=1e-5)
    assert float(pi.sum()) == pytest.approx(1)


def test_self_play_is_one_prox_step_with_another_name() -> None:
    beta, e, rates = 0.1, 0.37, vector(0.6, 0.45, 0.4)
    anchor = vector(0.2, 0.5, 0.3).log()
    one = prox_step(anchor, REFERENCE, rates, beta, e)
    assert torch.allclose(one, self_play_step(anchor, REFERENCE, rates, beta, beta * (1 + e) / e), atol=1e-12)
    assert torch.allclose(mixture(anchor, REFERENCE, 1.0), REFERENCE)
    a = iterated("nash-mp(prox_steps=one)", RPS, 7).log_policy
    assert torch.allclose(a, iterated("self-play(eta=0.6)", RPS, 7).log_policy, atol=1e-12)


# ---------------------------------------------------------------------------------- games, played to the end


def test_mirror_prox_converges_where_one_step_circles() -> None:
    tight = f"{RPS}(beta=0.02)"
    assert gap(iterated("nash-mp", tight, 100)) < 1e-8
    assert gap(iterated("nash-mp", tight, 400)) < 1e-14
    assert gap(iterated("nash-mp(prox_steps=one)", tight, 400)) > 0.5


def test_self_play_needs_a_small_enough_step() -> None:
    for eta, least, most in (("1", 0.0, 1e-6), ("0.3", 0.05, 1.0)):
        end = iterated(f"self-play(eta={eta})", RPS, 200).evaluate()[0]["eval/exploitability"]
        assert least <= end <= most


@pytest.mark.parametrize("actions", [10, 100])
def test_nash_mp_beats_its_baselines_at_equal_queries_whatever_the_size(actions: int) -> None:
    game = f"matrix-game(actions={actions},beta=0.01)"
    loop = prepared("nash-mp", game, "reward_calls=800", seed=4)
    loop.run()
    mine = gap(loop.run_state)
    assert loop.context.spent.reward_calls == 800
    # the theorem's slope: (1 + 2 beta)^-1 an iteration of two queries
    assert mine < gap(iterated("nash-mp", game, 0, seed=4)) * 1.02**-400
    for baseline in ("nash-md", "self-play"):
        assert mine < gap(iterated(baseline, game, 800, seed=4)) / 100


def test_the_target_calms_self_play() -> None:
    """Sampled pairs: the moving target brings the policy near the Nash policy where plain self-play stays away."""

    def end(kappa: float) -> float:
        run_state = iterated(f"nash-mp-pg(kappa={kappa},learning_rate=3)", f"{RPS}(beta=0.02)", 700, seed=1)
        return float(run_state.evaluate()[0]["eval/exploitability"])

    anchored = end(0.05)
    assert anchored < 0.03
    assert anchored < end(1.0) / 3


def test_proximal_steps_by_gradient_reach_the_nash_policy() -> None:
    method = "nash-mp-pg(opponent=step,label=probability,pairs_per_step=500)+descend-in-steps(inner_steps=10)"
    run_state = iterated(method, RPS, 600)
    assert gap(run_state) < 1e-3 < 0.06 < gap(iterated("nash-mp", RPS, 0))


def test_both_proximal_steps_by_gradient_start_from_the_anchor() -> None:
    loop = prepared("nash-mp-pg(opponent=step)+descend-in-steps(inner_steps=4)", RPS, "iterations=99")
    run_state = loop.run_state

    def after(passes: int) -> Tensor:
        for _ in range(passes):
            loop.iterate()
        return run_state.log_policy

    start = run_state.log_policy
    near = after(3)
    assert not torch.allclose(near, start) and torch.equal(run_state.models["step"].log_policy, start)
    assert torch.allclose(after(1), start)  # the half step is done, and the whole one begins where it began
    half = run_state.models["step"].log_policy
    assert not torch.allclose(half, start) and torch.allclose(run_state.output_policy, start)
    whole = after(4)
    assert torch.allclose(run_state.output_policy, whole) and not torch.allclose(whole, start)
    for name in ("step", "target"):
        assert torch.allclose(run_state.models[name].log_policy, whole)


@pytest.mark.parametrize(("opponent", "trained"), [("policy", 16), ("target", 8)])
def test_only_what_the_policy_drew_trains(opponent: str, trained: int) -> None:
    loop = prepared(f"nash-mp-pg(opponent={opponent},pairs_per_step=8)", RPS, "iterations=99")
    batch = loop.iterate()
    assert int((batch["weight"] != 0).sum()) == trained
    assert batch["score"][:8].tolist() == [1 - x for x in batch["score"][8:].tolist()]
    assert float(batch["advantage"][batch["mask"]].mean()) == pytest.approx(0, abs=1e-12)
    assert loop.context.spent.reward_calls == 8 and loop.context.spent.samples == 16


def test_the_sampled_gradient_is_that_of_the_proximal_objective() -> None:
    """Mean over many pairs of the loss's gradient against autograd through the exact objective (I), times beta."""
    loop = prepared("nash-mp-pg(pairs_per_step=400000,label=probability)", f"{RPS}(beta=0.3)", "iterations=9")
    run_state, recipe, context = loop.run_state, loop.recipe, loop.context
    run_state.models["policy"].assign(vector(0.2, 0.5, 0.3).log())
    run_state.models["target"].assign(vector(0.6, 0.3, 0.1).log())
    context.iteration = 1
    experience: Any = None
    for stage, parts in recipe.stages():
        for part in parts:
            if stage != "improve":
                experience = part(experience, context)
    (loss,) = next(step for step in recipe.update_steps() if isinstance(step, Update)).terms
    with See(run_state.models, context, "policy-update").gradients("policy") as policy:
        outputs = policy.outputs(experience, {"logprob"}, None)
        (loss.loss(outputs, experience) * loss.step_weights(experience)).sum().backward()
    (found,) = run_state.models.gradients("policy")
    logits = run_state.models["policy"].logits.detach().clone().requires_grad_()
    pi = torch.log_softmax(logits, -1)
    opponent = pi.detach().exp()
    objective = -(pi.exp() @ (run_state.task.preference @ opponent)) + 0.3 * (pi.exp() * (pi - REFERENCE)).sum()
    objective = objective + 0.5 * (pi.exp() * (pi - vector(0.6, 0.3, 0.1).log())).sum()
    objective.backward()
    assert found.tolist() == pytest.approx(logits.grad.tolist(), abs=3e-3)  # type: ignore[union-attr]
    assert float(logits.grad.abs().max()) > 0.03  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------- robust backups


def test_the_mirror_form_known_by_hand() -> None:
    policy, value = mirror_policy(vector(0, 1), vector(0.8, 0.2), vector(0.5, 0.5).log(), 0.2, 0.5)
    assert policy.tolist() == pytest.approx([0.6911972, 0.3088028], abs=1e-7)
    divergence = float((policy * (policy / 0.5).log()).sum())
    assert float(value) == pytest.approx(0.3088028 - 0.2 * divergence, abs=1e-6)
    near, soft = (mirror_policy(vector(0, 1), vector(0.8, 0.2), vector(0.5, 0.5).log(), 0.2, a) for a in (1e9, None))
    assert torch.allclose(near[0], soft[0], atol=1e-6) and float(near[1]) == pytest.approx(float(soft[1]), abs=1e-6)


def test_the_bonus_without_data() -> None:
    phi, inverse = vector(0.6, 0, 0, 0.4)[None, None], 10 * torch.eye(4, dtype=torch.float64)[None]
    assert float(RobustBackup()._widths(phi, inverse)) == pytest.approx(3.1622777, abs=1e-6)
    assert float(RobustBackup(bonus_form="norm")._widths(phi, inverse)) == pytest.approx(2.2803509, abs=1e-6)


def collected(method: str, task: str, episodes: int) -> tuple[Loop, list[Experience]]:
    """A loop after some episodes, and all their experience."""
    loop = prepared(method, task, "iterations=1000000")
    return loop, [loop.iterate() for _ in range(episodes)]


@pytest.mark.parametrize(
    ("divergence", "constraint"),
    [("tv", "radius"), ("tv", "penalty"), ("kl", "radius"), ("kl", "penalty"), ("chi2", "radius"), ("chi2", "penalty")],
)
def test_the_backup_against_a_naive_one(divergence: str, constraint: str) -> None:
    """Regressions from the list of transitions, one target at a time, and duals over a fine grid."""
    name = f"linear-mdp(divergence={divergence},constraint={constraint},rho=0.3,lam=0.4,eta=0.05)"
    loop, batches = collected("dr-rpo(beta=0.7,ridge=0.2)", name, 25)
    mdp = loop.run_state.task
    phi = mdp.features.numpy()
    value = np.zeros(5)
    for h in (2, 1, 0):
        rows = [(int(b["state"][0, h]), int(b["action"][0, h]), int(b["next_state"][0, h])) for b in batches]
        gram = 0.2 * np.eye(4) + sum(np.outer(phi[s, a], phi[s, a]) for s, a, _ in rows)

        def z(g: Any, rows: Any = rows, gram: np.ndarray = gram, value: np.ndarray = value) -> np.ndarray:
            return np.linalg.solve(gram, sum(phi[s, a] * g(value[t]) for s, a, t in rows))

        nu = z(lambda v: v)
        if h == 0:
            least, nu[3] = float(value.min()), -math.inf
            top = 2.0
            if constraint == "penalty" and divergence == "tv":
                nu[3] = z(lambda v, top=least + 0.4: min(v, top))[3]
            elif constraint == "penalty" and divergence == "kl":
                nu[3] = -0.4 * math.log(max(z(lambda v: math.exp(-v / 0.4))[3], math.exp(-top / 0.4)))
            else:
                for a in np.geomspace(0.05, 20, 3000) if divergence == "kl" else [*np.linspace(0, 3, 3001), *value]:
                    if divergence == "kl":
                        moment = max(z(lambda v, a=a: math.exp(-v / a))[3], math.exp(-top / a))
                        nu[3] = max(nu[3], -a * math.log(moment) - 0.3 * a)
                        continue
                    first, second = z(lambda v, a=a: min(v, a))[3], z(lambda v, a=a: min(v, a) ** 2)[3]
                    cost = 0.3 * (a - least) if a >= least else 0.0
                    if divergence == "chi2":
                        spread = second - first**2
                        cost = math.sqrt(0.3 * max(spread, 0)) if constraint == "radius" else spread / 1.6
                    nu[3] = max(nu[3], first - cost)
        widths = np.sqrt(np.diag(np.linalg.inv(gram)))
        q = np.clip(mdp.reward[h].numpy() + phi @ nu + 0.7 * phi @ widths, 0, 3 - h)
        q[3] = 0
        np.testing.assert_allclose(loop.run_state.models["q"].values[h].numpy(), q, atol=2e-3)
        value = 0.05 * np.log(np.exp(q / 0.05).mean(1))


@pytest.mark.parametrize(
    ("method", "task", "wanted"),
    [
        ("dr-rpo", "linear-mdp", [1.461, 1.442, 1.423, 1.404, 1.386]),
        ("dr-rpo(rho=0)", "linear-mdp", [1.773, 1.476, 1.178, 0.880, 0.583]),
        ("dr-lsvi-ucb", "linear-mdp", [1.44] * 5),
    ],
)
def test_what_is_learnt_in_1500_episodes_is_the_exact_plan(method: str, task: str, wanted: list[float]) -> None:
    run_state = iterated(method, task, 1500, SEED)
    found = run_state.task.returns(run_state.policy)
    assert len(found) == len(wanted)
    reached(-max(abs(a - b) for a, b in zip(found.values(), wanted, strict=True)), -0.05)
    measures = run_state.evaluate()[0]
    reached(-measures["eval/return_error"], -0.05)
    if method == "dr-rpo":
        reached(-measures["eval/suboptimality"], -0.002)
        assert 0.003 < measures["eval/regret"] < 0.01  # the average over all episodes, the first ones included
    if method == "dr-rpo(rho=0)":  # judged by the worst case that it did not plan for
        assert measures["eval/suboptimality"] > 0.1


def test_regret_is_the_sum_of_the_suboptimalities_of_what_acted() -> None:
    loop = prepared("dr-rpo", "linear-mdp", "iterations=99")
    gaps = []
    for _ in range(8):
        gaps.append(loop.run_state.task.suboptimality(loop.run_state.policy))
        loop.iterate()
        assert loop.context.metrics["suboptimality"] == gaps[-1]
    assert loop.run_state.evaluate()[0]["eval/regret"] == pytest.approx(sum(gaps) / 8, abs=1e-12)


def test_without_temperature_the_policies_are_greedy_and_equal() -> None:
    one, other = (iterated(m, "linear-mdp(eta=0)", 60) for m in ("dr-rpo", "dr-lsvi-ucb"))
    assert torch.equal(one.policy, other.policy)
    assert bool(((one.policy == 0) | (one.policy == 1)).all())


def test_too_small_a_bonus_never_tries_the_risky_action() -> None:
    said: list[str] = []
    prepared("dr-lsvi-ucb(rho=0,beta=0.3)", "linear-mdp", "iterations=9", said=said.append)
    assert len(said) == 1 and "--beta 0.95" in said[0]
    stuck = iterated("dr-lsvi-ucb(rho=0,beta=0.3)", "linear-mdp", 400)
    assert stuck.task.returns(stuck.policy)["q0"] == pytest.approx(1.44, abs=1e-3)
    bold = iterated("dr-lsvi-ucb(rho=0,beta=1)", "linear-mdp", 400)
    assert bold.task.returns(bold.policy)["q0"] > 1.7


def test_an_unseen_shift_costs_who_did_not_plan_for_it() -> None:
    careful, naive = (iterated(f"dr-rpo(rho={rho})", "linear-mdp", 500) for rho in (0.5, 0))
    a, b = careful.task.returns(careful.policy), naive.task.returns(naive.policy)
    assert a["q1"] > b["q1"] + 0.5 and b["q0"] > a["q0"] + 0.2


def test_mirror_form_learns_too() -> None:
    run_state = iterated("dr-rpo(alpha=20)", "linear-mdp", 600, SEED)
    reached(-run_state.evaluate()[0]["eval/suboptimality"], -0.02)


# --------------------------------------------------------------------------- commands, resume, bad input


METHODS = {
    "nash-mp": "matrix-game",
    "nash-md": RPS,
    "self-play": "matrix-game(actions=4)",
    "nash-mp-pg": RPS,
    "nash-mp-pg(opponent=step)+descend-in-steps(inner_steps=3)": RPS,
    "dr-rpo": "linear-mdp",
    "dr-lsvi-ucb": "american-put",
}


def words(method: str, out: Path, *more: str) -> list[str]:
    run = ["train", method, "--task", METHODS[method], "--seed", "3", "--budget", "iterations=11", "--out", str(out)]
    return [*run, "--checkpoint-every", "4", "--evaluations", "4", "--no-tensorboard", "--quiet", *more]


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_records(run)]


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
left = int(sys.argv.pop(1))
from polyrl.core.loop import Loop
from polyrl.core.update import See, Update
original = Loop._record
def counted(*args, **kwargs):
    global left
    left -= 1
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
Loop._record = counted
from polyrl.cli.main import main
main()
"""


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_bits(
    method: str, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert polyrl(*words(method, whole)).code == 0
    original = Loop._record
    left = 7

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    monkeypatch.setattr(Loop, "_record", interrupted)
    polyrl(*words(method, cut))
    monkeypatch.setattr(Loop, "_record", original)
    assert len(read_records(cut)) == 7
    assert polyrl("resume", cut, "--quiet").code == 0
    assert untimed(cut) == untimed(whole) and len(untimed(whole)) == 12
    newest = "checkpoints/iteration-000011"
    tables = sorted(
        str(file.relative_to(whole)) for at in ("model", newest) for file in (whole / at).glob("*.safetensors")
    )
    assert {"model/policy.safetensors", f"{newest}/policy.safetensors"} <= {*tables}
    for file in (*tables, "samples.jsonl"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("method", ["dr-rpo", "nash-mp"])
def test_a_killed_run_ends_with_the_same_bits(method: str, tmp_path: Path, polyrl: Command) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert polyrl(*words(method, whole)).code == 0
    done = run_code(KILLED, ["9", *words(method, cut)])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert polyrl("resume", cut, "--quiet").code == 0
    assert untimed(cut) == untimed(whole)
    assert (cut / "model/policy.safetensors").read_bytes() == (whole / "model/policy.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["nash-mp", "nash-mp-pg", "dr-rpo", "dr-lsvi-ucb"])
def test_play_shows_the_policy_beside_the_exact_answer(method: str, tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    polyrl(*words(method, run))
    told = polyrl("play", run)
    assert told.code == 0, told.err
    for word in ("Nash policy", "exploitability") if "nash" in method else ("exact plan", "worst dynamics"):
        assert word in told.out


@pytest.mark.parametrize(
    ("method", "task", "word"),
    [
        ("nash-mp", "linear-mdp", "robust MDP"),
        ("dr-rpo", RPS, "preference game"),
        ("nash-mp(eta=0)", RPS, "eta"),
        ("nash-mp(prox_steps=three)", RPS, "two, one"),
        ("nash-md(eta=11)", RPS, "at most 10"),
        ("self-play(eta=0.05)", RPS, "beta=0.1"),
        ("nash-mp-pg(kappa=0)", RPS, "kappa"),
        ("nash-mp-pg(opponent=step)", RPS, "descend-in-steps"),
        ("nash-mp-pg+descend-in-steps", RPS, "opponent step"),
        ("dr-rpo(rho=-1)", "linear-mdp", "rho"),
        ("dr-rpo(ridge=0)", "linear-mdp", "ridge"),
        ("dr-rpo(eta=-1)", "linear-mdp", "eta"),
        ("dr-rpo(lam=0)", "linear-mdp", "lam"),
        ("dr-rpo(divergence=l2)", "linear-mdp", "tv, kl, chi2"),
        ("dr-rpo(robust-backup.eta=0.1)", "linear-mdp", "set --eta for both"),
        ("dr-lsvi-ucb(eta=0.1)", "linear-mdp", "for both"),
    ],
)
def test_bad_input_is_told_in_one_sentence(method: str, task: str, word: str, tmp_path: Path, polyrl: Command) -> None:
    told = polyrl("train", method, "--task", task, "--budget", "iterations=2", "--out", tmp_path / "run", "--quiet")
    assert told.code == 2
    assert word in told.err + told.out
    assert "Traceback" not in told.err


def test_a_value_that_is_not_finite_stops_the_run_with_its_name() -> None:
    loop = prepared("dr-rpo", "linear-mdp", "iterations=9")
    loop.iterate()
    loop.run_state.models["regressions"].moments[0, 0, 1] = math.nan
    with pytest.raises(NotFinite, match="robust-backup"):
        loop.iterate()


def test_an_episode_by_hand() -> None:
    """Where a step leads is the next one's state, and is drawn apart from the action."""
    run_state = iterated("dr-rpo", "linear-mdp", 0)
    task = run_state.task
    for seed in range(20):
        draws = torch.rand(task.horizon, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        state, wanted = 0, []
        for h, (first, second) in enumerate(draws):
            action = sum(first >= x for x in run_state.policy[h, state].cumsum(0).tolist())
            following = sum(second >= x for x in task.kernel[h, state, action].cumsum(0).tolist())
            wanted.append([state, action, following])
            state = following
        assert torch.stack(run_state.roll(torch.Generator().manual_seed(seed)), 1).tolist() == wanted


def test_an_episodes_score_is_the_sum_of_its_rewards() -> None:
    loop = prepared("dr-rpo", "linear-mdp", "iterations=9")
    for _ in range(5):
        batch = loop.iterate()
        steps = zip(batch["state"][0].tolist(), batch["action"][0].tolist(), strict=True)
        paid = [float(loop.run_state.task.reward[h, s, a]) for h, (s, a) in enumerate(steps)]
        assert batch["reward"][0].tolist() == pytest.approx(paid)
        assert float(batch["score"]) == pytest.approx(sum(paid))


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("nash-mp-pg", "draw-pairs"),
        ("nash-mp-pg(opponent=step)+descend-in-steps", "draw-pairs"),
        ("nash-mp", "enumerate-answers"),
        ("nash-md", "enumerate-against-mixture"),
        ("self-play", "enumerate-answers"),
        ("dr-rpo", "roll-episode"),
        ("dr-lsvi-ucb", "roll-episode"),
    ],
)
def test_a_policy_that_is_not_finite_does_not_play(method: str, part: str) -> None:
    loop = prepared(method, "linear-mdp" if method.startswith("dr") else RPS, "iterations=9")
    loop.iterate()
    for table in loop.run_state.models["policy"].state_dict().values():
        table.fill_(math.nan)
    with pytest.raises(Diverged, match=f"The policy that part '{part}' was to play in iteration 2 is NaN"):
        loop.iterate()


def test_an_opponent_that_is_not_finite_does_not_play() -> None:
    loop = prepared("nash-mp-pg(opponent=target)", RPS, "iterations=9")
    loop.iterate()
    loop.run_state.models["target"].logits.data.fill_(math.inf)
    with pytest.raises(Diverged, match="The opponent that part 'draw-pairs' was to play"):
        loop.iterate()


@pytest.mark.parametrize("method", ["nash-mp-pg", "nash-mp-pg(opponent=step)+descend-in-steps"])
def test_a_step_to_nowhere_names_the_model_that_took_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = prepared(method, RPS, "iterations=9")
    loop.iterate()
    gradients = loop.run_state.models.gradients
    (optimizer,) = loop.context.optimizer.values()

    def changed(name: str) -> list[Tensor]:  # after they are measured and before the step
        optimizer.param_groups[0]["lr"] = math.inf
        return gradients(name)

    monkeypatch.setattr(loop.run_state.models, "gradients", changed)
    with pytest.raises(NotFinite, match=r"The model 'policy' became NaN or infinite, .* lower --policy\.learning-rate"):
        loop.iterate()
    assert loop.context.params_updated  # so that nothing is saved of it


def test_a_move_to_nowhere_names_the_model_that_moved() -> None:
    models = iterated("nash-mp-pg", RPS, 1).models
    models["policy"].logits.data.fill_(math.nan)
    with pytest.raises(NotFinite, match="The model 'target' became NaN or infinite"):
        models.move("target", "policy", 0.5)


def test_tables_of_another_task_are_refused(tmp_path: Path) -> None:
    iterated("nash-mp", RPS, 1).save(tmp_path / "a")
    other = iterated("nash-mp", "matrix-game", 0)
    with pytest.raises(UserError, match="another task"):
        other.load(tmp_path / "a")
    (tmp_path / "a" / "policy.safetensors").write_bytes(os.urandom(40))
    with pytest.raises(UserError, match="no readable"):
        other.load(tmp_path / "a")


def test_seeds_are_games_and_runs_repeat() -> None:
    one, same, other = (iterated("nash-mp-pg", "matrix-game", 5, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.log_policy, same.log_policy) and not torch.equal(one.task.preference, other.task.preference)
    a, b, c = (iterated("dr-rpo", "linear-mdp", 20, seed=s) for s in (1, 1, 2))
    seen = [run_state.models["regressions"].moments for run_state in (a, b, c)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_recipes_hold_together() -> None:
    for name in ("nash-mp", "nash-md", "self-play", "nash-mp-pg", "dr-rpo", "dr-lsvi-ucb"):
        info = catalogue.methods()[name]
        assert info.domain == "theory" and info.task and info.paper.startswith("arXiv:")
        assert catalogue.build(name).check().name == name
