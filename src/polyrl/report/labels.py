"""What the numbers of a run are called where people see them: by domain, with their units.

Names that are not here are shown as they are. Every domain speaks of its own steps: tokens, environment steps, periods.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

DOMAINS = ("language", "control", "operations", "theory")
STEP = {"language": "token", "control": "step", "operations": "period", "theory": "step"}
"""What one step of a domain is, for units such as "nats per token"."""
EPISODE = {"language": "sequence", "control": "episode", "operations": "episode", "theory": "episode"}

_AXES: dict[str, dict[str, tuple[str, str]]] = {
    "language": {
        "samples": ("Samples", "completions"),
        "tokens": ("Tokens", ""),
        "steps": ("Steps", ""),
        "reward_calls": ("Reward calls", ""),
    },
    "control": {
        "steps": ("Environment steps", ""),
        "samples": ("Episodes", ""),
        "reward_calls": ("Reward calls", ""),
    },
    "operations": {
        "samples": ("Episodes", ""),
        "steps": ("Simulated periods", ""),
        "reward_calls": ("Reward calls", ""),
    },
    "theory": {
        "reward_calls": ("Preference queries", ""),
        "queries": ("Queries of the environment", ""),
        "samples": ("Episodes", ""),
        "steps": ("Environment steps", ""),
    },
}
_AXES_OF_ALL = {
    "queries": ("Queries", ""),
    "updates": ("Optimizer steps", ""),
    "seconds": ("Training time", "s"),
    "iteration": ("Iterations", ""),
}
AXIS_KEYS = ("samples", "tokens", "steps", "reward_calls", "queries", "updates", "seconds", "iteration")
"""Budget axes, as metrics.jsonl names them."""

GROUPS = ("Evaluation", "Reward", "Policy", "Pairs", "Critic", "Optimizer", "Losses", "Time", "Other")
"""The order of groups in the page's list of metrics."""

KNOWN: dict[str, tuple[str, str, str]] = {
    "eval/accuracy": ("Evaluation accuracy", "share of prompts", "Evaluation"),
    "eval/return": ("Evaluation return", "", "Evaluation"),
    "eval/guided_return": ("Evaluation return with advice", "", "Evaluation"),
    "advice/weight": ("Weight of the advice", "share", "Policy"),
    "eval/normalized_return": ("Normalized score", "0 and 1 are the data's references", "Evaluation"),
    "eval/return_std": ("Spread of evaluation returns", "standard deviation", "Evaluation"),
    "eval/cost": ("Evaluation cost", "", "Evaluation"),
    "eval/median_cost": ("Median of the evaluation costs", "", "Evaluation"),
    "eval/gap": ("Gap to the optimum", "", "Evaluation"),
    "eval/regret": ("Regret", "", "Evaluation"),
    "eval/cumulative_regret": ("Regret so far", "", "Evaluation"),
    "eval/gain": ("Gain", "reward per step", "Evaluation"),
    "eval/suboptimality": ("Suboptimality", "", "Evaluation"),
    "eval/class_suboptimality": ("Distance to the best of the class", "", "Evaluation"),
    "eval/exploitability": ("Exploitability", "", "Evaluation"),
    "eval/duality_gap": ("Duality gap", "", "Evaluation"),
    "eval/target_exploitability": ("Exploitability of the target", "", "Evaluation"),
    "eval/kl_to_nash": ("KL to the Nash policy", "nats", "Evaluation"),
    "eval/win_rate": ("Win rate", "share of pairs", "Evaluation"),
    "eval/pair_accuracy": ("Accuracy on held-out pairs", "share of pairs", "Evaluation"),
    "eval/auc": ("Held-out labels told apart", "AUC", "Evaluation"),
    "eval/log_ratio_desirable": ("Log-ratio of desirable held-out responses", "nats per {episode}", "Evaluation"),
    "eval/log_ratio_undesirable": ("Log-ratio of undesirable held-out responses", "nats per {episode}", "Evaluation"),
    "eval/kl": ("KL to the start, in evaluation", "nats per {episode}", "Evaluation"),
    "eval/root_kl": ("Root of the KL to the start", "", "Evaluation"),
    "eval/gold": ("Gold of the policy", "", "Evaluation"),
    "eval/gold_at_kl": ("Most gold at this KL", "", "Evaluation"),
    "eval/best_gold": ("Gold of the best answer", "", "Evaluation"),
    "eval/off_data": ("Probability off the data", "share", "Evaluation"),
    "eval/chosen_logprob": ("Log-probability of chosen answers", "nats", "Evaluation"),
    "eval/rejected_logprob": ("Log-probability of rejected answers", "nats", "Evaluation"),
    "eval/kl_to_reference": ("KL to the reference", "nats", "Evaluation"),
    "eval/margin": ("Margin on held-out responses", "chosen minus rejected", "Evaluation"),
    "eval/loss": ("Loss on held-out responses", "", "Evaluation"),
    "eval/dev_cost": ("Cost on the development traces", "", "Evaluation"),
    "eval/worst_return": ("Return in the worst dynamics", "", "Evaluation"),
    "eval/return_error": ("Error of the returns", "largest difference", "Evaluation"),
    "eval/trigger_rate": ("Trigger rate", "share of responses that think", "Evaluation"),
    "eval/trigger_precision": ("Thoughts that are useful", "share of thoughts", "Evaluation"),
    "eval/trigger_recall": ("Useful thoughts that are thought", "share", "Evaluation"),
    "eval/trigger_f1": ("F1 of the decision to think", "", "Evaluation"),
    "eval/trigger_accuracy": ("Accuracy of the decision to think", "share", "Evaluation"),
    "eval/reward": ("Evaluation reward", "mean score", "Evaluation"),
    "eval/length": ("Evaluation episode length", "{step}s", "Evaluation"),
    "eval/mean_length": ("Evaluation response length", "tokens", "Evaluation"),
    "reward": ("Training reward", "mean score", "Reward"),
    "reward_std": ("Spread of rewards", "standard deviation", "Reward"),
    "episode/return": ("Return of training episodes", "", "Reward"),
    "episode/length": ("Length of training episodes", "{step}s", "Reward"),
    "cost": ("Training cost", "", "Reward"),
    "reward_scale": ("Factor on rewards", "", "Reward"),
    "baseline_score": ("Score of the greedy answers", "mean", "Reward"),
    "gap": ("Gap of the actions taken", "reward", "Reward"),
    "suboptimality": ("Suboptimality in training", "", "Reward"),
    "class_error": ("Largest error of an estimated value of the class", "reward", "Reward"),
    "cumulative_regret": ("Regret so far, each iteration", "reward", "Reward"),
    "best_win_rate": ("Win rate of the best answer", "share", "Reward"),
    "bonus": ("Bonus for what is little known", "mean", "Reward"),
    "frac_reward_zero_std": ("Groups without a spread", "share of groups", "Reward"),
    "tool_calls": ("Tool calls", "per response", "Reward"),
    "tools/minimum": ("Fewest calls that sufficed", "mean", "Reward"),
    "tools/coefficient": ("Coefficient of tool calls", "mean", "Reward"),
    "failed_calls": ("Failed calls in training", "share of calls", "Reward"),
    "blind_writes": ("Wrote before looking up, in training", "share of responses", "Reward"),
    "turns/per_response": ("Turns", "per response", "Reward"),
    "eval/tool_calls": ("Tool calls in evaluation", "per response", "Evaluation"),
    "eval/tool_productivity": ("Right answers per tool call", "", "Evaluation"),
    "eval/needless_calls": ("Needless tool calls", "per right answer", "Evaluation"),
    "eval/failed_calls": ("Failed calls", "share of calls", "Evaluation"),
    "eval/blind_writes": ("Wrote before looking up", "share of responses", "Evaluation"),
    "rollouts/kept": ("Rollouts with an advantage", "share", "Policy"),
    "gold": ("Gold score in training", "mean", "Reward"),
    "score/clipped": ("Clipped scores", "share of responses", "Reward"),
    "score/running_std": ("Spread of all scores so far", "standard deviation", "Reward"),
    "score/skewness": ("Skewness of scores", "right tail above 0", "Reward"),
    "ensemble/mean": ("Mean score of the ensemble", "mean", "Reward"),
    "ensemble/variance": ("Disagreement of the ensemble", "variance between members", "Reward"),
    "dpo/reward": ("Reward by the DPO policy", "sum over a response", "Reward"),
    "dpo/log_ratio": ("Log-ratio of the DPO policy to the start", "nats per token", "Reward"),
    "dpo/clipped": ("Clipped rewards of the DPO policy", "share of tokens", "Reward"),
    "dpo/agreement": ("Agreement of DPO policy and score", "correlation", "Reward"),
    "completions/mean_length": ("Response length", "tokens", "Reward"),
    "completions/max_length": ("Longest response", "tokens", "Reward"),
    "completions/clipped_ratio": ("Responses cut at the limit", "share of responses", "Reward"),
    "steps/gap": ("Best step over the worst", "value, mean over states", "Critic"),
    "steps/against_outcome": ("Steps judged against their outcome", "share of steps", "Critic"),
    "offline/states": ("States of the offline set", "", "Other"),
    "offline/epoch": ("Passes over the offline set", "", "Other"),
    "decode_steps": ("Decoding steps one after another", "tokens per iteration", "Reward"),
    "windows/finished": ("Responses that are complete", "share of slots", "Reward"),
    "windows/staleness": ("Age of the oldest token", "iterations, mean of slots", "Reward"),
    "advantage/finished": ("Advantages of complete responses", "root mean square", "Critic"),
    "advantage/unfinished": ("Advantages of unfinished windows", "root mean square", "Critic"),
    "continuations/tokens": ("Tokens of continuations", "tokens per iteration", "Reward"),
    "continuations/states": ("States that were continued", "per iteration", "Reward"),
    "steps/per_response": ("Steps of a response", "mean", "Reward"),
    "steps/value": ("Measured value of steps", "mean", "Reward"),
    "steps/undecided": ("Steps that changed nothing", "share of steps", "Reward"),
    "kl": ("KL to the start", "nats per {episode}", "Policy"),
    "select/steps": ("Selected for the update", "{step}s", "Policy"),
    "d3s/rollouts": ("Selected responses", "", "Policy"),
    "d3s/useful": ("Selected responses with an advantage", "share", "Policy"),
    "filter/r2": ("Gold explained by the reward, of drawn answers", "R squared", "Policy"),
    "filter/score": ("Reward of drawn answers", "mean score", "Policy"),
    "groups/kept": ("Kept by the filter of groups", "share of responses", "Policy"),
    "joint/loss": ("Loss of the reward model", "last step", "Losses"),
    "joint/pair_accuracy": ("Pairs that the reward model ranks rightly", "share of pairs", "Reward"),
    "joint/demonstration_gap": ("Reward of demonstrations over samples", "mean", "Reward"),
    "adviser/accuracy": ("Right answers of the adviser", "share of states", "Policy"),
    "adviser/brier": ("Brier score of the adviser", "0 is best", "Policy"),
    "adviser/calibration_error": ("Calibration error of the adviser", "0 is best", "Policy"),
    "adviser/auroc": ("Wrong answers told by their entropy", "AUROC, 1 is best", "Policy"),
    "capo/rejected": ("Rejected by CAPO", "share of {step}s", "Policy"),
    "capo/objective_shift": ("Predicted shift of the objective", "97th percentile", "Policy"),
    "capo/policy_shift": ("Predicted shift of the policy", "97th percentile", "Policy"),
    "trigger_rate": ("Trigger rate in training", "share of responses that think", "Policy"),
    "thinking/omitted": ("Useful thoughts left out", "share of responses", "Policy"),
    "thinking/overused": ("Thoughts for nothing", "share of responses", "Policy"),
    "thinking/malformed": ("Malformed tags", "share of responses", "Policy"),
    "malformed": ("Malformed tags in training", "share of responses", "Policy"),
    "thinking/masked": ("Deciding tokens left out", "{step}s", "Policy"),
    "kl_coef": ("Weight of the KL", "", "Policy"),
    "penalty/kl": ("KL that is penalized", "nats per {step}", "Policy"),
    "penalty/coefficient": ("Weight of the KL penalty", "", "Policy"),
    "kl_per_token": ("KL to the start, per token", "nats per token", "Policy"),
    "entropy": ("Entropy", "nats per {step}", "Policy"),
    "approx_kl": ("KL to the sampling policy", "nats per {step}", "Policy"),
    "clip_ratio": ("Clipped ratios", "share of {step}s", "Policy"),
    "ratio": ("Probability ratio", "mean", "Policy"),
    "perplexity": ("Perplexity of samples", "per token", "Policy"),
    "ref_perplexity": ("Perplexity of samples under the start", "per token", "Policy"),
    "logprob_gap": ("Sampler against trainer", "nats, largest gap", "Policy"),
    "rewards/margins": ("Margin of implicit rewards", "chosen minus rejected", "Pairs"),
    "rewards/accuracies": ("Pairs ranked rightly in training", "share of pairs", "Pairs"),
    "token_weight/mean": ("Weight of a token", "mean f", "Pairs"),
    "token_weight/clipped": ("Weights that were clipped", "share of tokens", "Pairs"),
    "token_weight/negative": ("Weights below 0 before the clip", "share of tokens", "Pairs"),
    "rewards/chosen": ("Implicit reward of the chosen", "", "Pairs"),
    "rewards/rejected": ("Implicit reward of the rejected", "", "Pairs"),
    "labels/epoch": ("Passes over the labelled responses", "", "Pairs"),
    "labels/desirable": ("Desirable responses", "share of a batch", "Pairs"),
    "reference_point": ("Reference point z0", "nats", "Pairs"),
    "reference_point/unclamped": ("Reference point before it is held above 0", "nats", "Pairs"),
    "pairs/epoch": ("Passes over the pairs", "", "Pairs"),
    "pairs/weight": ("Weight of a pair", "mean", "Pairs"),
    "pairs/sure": ("Sureness of the labels", "", "Pairs"),
    "pairs/ties": ("Groups that make no pair", "share of groups", "Pairs"),
    "pairs/score_gap": ("Score of the chosen over the rejected", "mean", "Pairs"),
    "logps/chosen": ("Log-probability of the chosen", "nats per {episode}", "Pairs"),
    "logps/rejected": ("Log-probability of the rejected", "nats per {episode}", "Pairs"),
    "value/explained_variance": ("Explained variance of the critic", "share of variance, 1 is best", "Critic"),
    "value/clip_ratio": ("Clipped values", "share of {step}s", "Critic"),
    "value/error": ("Error of the critic", "root mean square", "Critic"),
    "value/mean": ("Mean value", "reward", "Critic"),
    "learning_rate": ("Learning rate", "", "Optimizer"),
    "grad_norm/policy": ("Gradient norm of the policy", "before clipping", "Optimizer"),
    "grad_norm/critic": ("Gradient norm of the critic", "before clipping", "Optimizer"),
    "loss": ("Loss", "", "Losses"),
    "tokens_per_second": ("Sampling speed", "tokens per second", "Time"),
    "steps_per_second": ("Sampling speed", "{step}s per second", "Time"),
    "updates_per_second": ("Training speed", "optimizer steps per second", "Time"),
}
"""Known metrics, in the order of the page's list: key -> label, unit and group."""

_PREFIXES: dict[str, tuple[str, str, str]] = {
    # prefix -> label with the rest of the key, unit, group
    "bon/": ("Best of n: {}", "", "Reward"),
    "loss/": ("Loss: {}", "", "Losses"),
    "seconds/": ("Time of {}", "s per iteration", "Time"),
    "grad_norm/": ("Gradient norm: {}", "before clipping", "Optimizer"),
    "logps/": ("Log-probability: {}", "nats", "Pairs"),
    "rewards/": ("Reward: {}", "", "Reward"),
    "logged/": ("Logged by a reward: {}", "", "Reward"),
    "eval/logged/": ("Logged by a reward in evaluation: {}", "", "Evaluation"),
    "eval/rewards/": ("Evaluation reward: {}", "", "Evaluation"),
    "eval/": ("Evaluation: {}", "", "Evaluation"),
    "value/": ("Critic: {}", "", "Critic"),
    "episode/": ("Training episodes: {}", "", "Reward"),
    "completions/": ("Responses: {}", "", "Reward"),
}

_ALSO_JUDGED = re.compile(r"eval/(?P<name>\w+)/(?P<metric>return|return_std|length)")
"""Metrics of what a recipe judges beside its policy (`also_judged`)."""

PANELS: dict[str, tuple[str, ...]] = {
    "language": (
        *("eval/off_data", "eval/chosen_logprob"),
        *("reward", "kl", "entropy", "completions/mean_length", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "eval/pair_accuracy", "eval/auc", "eval/kl", "approx_kl", "clip_ratio"),
        *("frac_reward_zero_std", "value/explained_variance", "loss", "grad_norm/policy"),
    ),
    "control": (
        *("episode/return", "episode/length", "entropy", "value/explained_variance", "approx_kl", "clip_ratio"),
        *("learning_rate", "grad_norm/policy", "steps_per_second"),
    ),
    "operations": (
        *("eval/dev_cost", "cost", "episode/return", "reward", "loss", "grad_norm/policy", "learning_rate"),
        *("entropy", "approx_kl", "steps_per_second"),
    ),
    "theory": (
        *("eval/exploitability", "eval/kl_to_nash", "eval/regret", "eval/suboptimality", "eval/duality_gap"),
        *("eval/return", "eval/gain", "eval/cumulative_regret"),
        *("eval/kl_to_reference", "eval/worst_return", "eval/return_error", "suboptimality", "best_win_rate", "bonus"),
        *("reward", "entropy", "kl", "loss", "grad_norm/policy"),
    ),
}
"""Metrics that the page draws small, side by side, by domain; those that were logged, in this order."""
MOST_PANELS = 9
MOST_LOGGED = 3
"""Of those, metrics that rewards of the user's own logged."""


def _filled(text: str, domain: str) -> str:
    return text.format(step=STEP.get(domain, "step"), episode=EPISODE.get(domain, "episode"))


def axis_label(domain: str, key: str) -> tuple[str, str]:
    """Label and unit of a budget axis, which may also be given as a budget's unit ("iterations")."""
    key = "iteration" if key == "iterations" else key
    known = {**_AXES["language"], **_AXES.get(domain, {}), **_AXES_OF_ALL}
    return known.get(key, (key.replace("_", " ").capitalize(), ""))


def axis_order(domain: str) -> list[str]:
    """Budget axes of a domain, the most natural first."""
    mine = [*_AXES.get(domain, _AXES["language"]), *_AXES_OF_ALL]
    return [*mine, *(key for key in AXIS_KEYS if key not in mine)]


def budget_words(domain: str, key: str) -> str:
    """A budget's unit in a sentence: "samples", "environment steps", "seconds"."""
    return "seconds" if key == "seconds" else axis_label(domain, key)[0].lower()


def metric_label(domain: str, key: str) -> tuple[str, str, str]:
    """Label, unit and group of a logged metric."""
    if key in KNOWN:
        label, unit, group = KNOWN[key]
        return label, _filled(unit, domain), group
    if (also := _ALSO_JUDGED.fullmatch(key)) is not None:
        label, unit, group = KNOWN.get(f"eval/{also['metric']}", (f"Evaluation: {also['metric']}", "", "Evaluation"))
        return f"{label}: {also['name'].replace('_', ' ')}", _filled(unit, domain), group
    for prefix in sorted(_PREFIXES, key=len, reverse=True):
        if key.startswith(prefix):
            label, unit, group = _PREFIXES[prefix]
            return label.format(key.removeprefix(prefix).replace("_", " ")), unit, group
    return key, "", "Other"


def metric_order(logged: Collection[str], first: str) -> list[str]:
    """Logged metrics in the order of the page's list: the deciding one, known ones, then others by group and name."""
    hidden = {*AXIS_KEYS, "iterations"}
    known = [key for key in dict.fromkeys([first, *KNOWN]) if key in logged]
    others = sorted({*logged} - {*known} - hidden, key=lambda key: (GROUPS.index(metric_label("", key)[2]), key))
    joined = [*known, *others]
    return sorted(joined, key=lambda key: -1 if key == first else GROUPS.index(metric_label("", key)[2]))


def panels(domain: str, logged: Iterable[str], first: str) -> list[str]:
    """Metrics to draw small, at most `MOST_PANELS`."""
    there = {*logged} - {first}
    own = sorted(key for key in there if key.startswith("logged/"))[:MOST_LOGGED]  # somebody wanted to see these
    first_of_all, *rest = PANELS.get(domain, ("",))
    wanted = [first_of_all, *own, *rest, *(key for other in PANELS.values() for key in other)]
    return [key for key in dict.fromkeys(wanted) if key in there][:MOST_PANELS]
