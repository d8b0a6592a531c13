"""AirLLM: does a denoiser that expands PPO's code help PPO, and is it worth more than a rule of one line?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Measure, Of, Quantity, Ratio, Seconds, Tail

if TYPE_CHECKING:
    from polyrl.runtime.metric import Metric

LATE = Tail(key="episode/return", last=60, better="higher")
ACCURACY = Final(key="link/accuracy", better="higher")
SENT = Final(key="link/megabits", better="lower")


@dataclass(frozen=True)
class NotBehindInBoth(Quantity):
    """What the first arm has ahead of the second: accuracy in points, or bits in percent less, whichever is more."""

    first: str
    second: str
    bits: Measure

    def arms(self) -> tuple[str, ...]:
        """Return both arms, for accuracy and for bits."""
        return self.first, self.second, self.first, self.second

    def measures(self) -> tuple[Measure, ...]:
        """Return accuracy of both and bits of both."""
        return self.measure, self.measure, self.bits, self.bits

    def combine(self, values: Sequence[float]) -> float:
        """Return the larger lead."""
        right, other, sent, others = values
        return 100 * max(right - other, 1 - sent / others if others else float("-inf"))

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"lead in accuracy (points) or in bits (percent), the larger: {self.first} over {self.second}"


RULED = "airllm(decoder=linear)"
GUIDED = "guidance=5,reward_weight=1,denoiser.learning_rate=1e-3"

CLAIM = Claim(
    slug="airllm",
    sentence="A denoiser that expands PPO's short code to the rank of every layer makes more of a radio link than PPO "
    "does without it.",
    place="abstract, the comparison with PPO alone",
    source="arXiv:2507.11515",
    question="A network of eight layers is adapted by 4,500 steps at most over channels from -5 to 15 dB, the adapter "
    "lasting over 300 episodes. The return is minus the losses of 15 batches and a tenth of the time of sending; the "
    "rule takes the largest uniform rank that fits the channel.",
    task="lora-channel",
    budget="steps=4500",
    options={"evaluations": 5, "eval_episodes": 10},
    hyperparameters={"gamma": "0", "policy.learning_rate": "1e-3", "critic.learning_rate": "1e-2"},
    arms=(
        Arm("AirLLM", f"airllm({GUIDED})"),
        Arm("linear", "airllm(decoder=linear)", why="the same code through a fixed random linear map"),
        Arm("PPO on ranks", "airllm(decoder=none,code=8)", why="a Gaussian number for each layer"),
        Arm("guidance 1.5", f"airllm({GUIDED.replace('guidance=5', 'guidance=1.5')})", why="control: the paper's own"),
        Arm(
            "no weights",
            f"airllm({GUIDED.replace('reward_weight=1', 'reward_weight=0')})",
            why="control: the denoiser imitates whatever was executed",
        ),
        Arm("rule", RULED, task="lora-channel(rule=uniform)", why="the largest uniform rank that fits decides"),
        Arm("lowest", RULED, task="lora-channel(rule=lowest)", why="control: rank 1 everywhere", drawn=False),
        Arm("random", RULED, task="lora-channel(rule=random)", why="control: random ranks that fit", drawn=False),
        Arm(
            "changed first",
            RULED,
            task="lora-channel(rule=changed-first)",
            why="a rule that is told which layers matter",
            drawn=False,
        ),
    ),
    criteria=(
        Criterion(
            "which layers get their ranks matters: a rule that knows it earns 1 more",
            Difference(LATE, "changed first", "rule"),
            at_least=1,
            kind="premise",
        ),
        Criterion(
            "PPO with a linear map learns to send what arrives",
            Of(Tail(key="link/arrived", last=60, better="higher"), "linear"),
            at_least=0.9,
            kind="premise",
        ),
        Criterion("AirLLM earns more late than with a linear map", Difference(LATE, "AirLLM", "linear"), at_least=0),
        Criterion("and more than PPO on the ranks", Difference(LATE, "AirLLM", "PPO on ranks"), at_least=0),
        Criterion("it earns more than the rule", Difference(LATE, "AirLLM", "rule"), at_least=0, kind="control"),
        Criterion(
            "it adapts no more than two points worse than the rule",
            Difference(ACCURACY, "AirLLM", "rule"),
            at_least=-0.02,
            kind="control",
        ),
        Criterion(
            "the rule, which sends what it can, does not adapt better for fewer bits",
            NotBehindInBoth(ACCURACY, "AirLLM", "rule", SENT),
            at_least=0,
            unit="points or %",
            kind="control",
        ),
        Criterion("it earns more than random ranks", Difference(LATE, "AirLLM", "random"), at_least=0, kind="control"),
        Criterion("it earns more than rank 1", Difference(LATE, "AirLLM", "lowest"), at_least=0, kind="control"),
        Criterion("the rewards' weights help", Difference(LATE, "AirLLM", "no weights"), at_least=0, kind="control"),
        Criterion(
            "so does more guidance than the paper's",
            Difference(LATE, "AirLLM", "guidance 1.5"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "it takes at most three times as long", Ratio(Seconds(), "AirLLM", "linear"), at_most=3, kind="control"
        ),
    ),
    seeds=tuple(range(20, 28)),
    looks=(5, 8),
    tuning_seeds=(0, 1),
    tuning="By the late return. The discount (0.95, at which nobody had learned to send what arrives, 0), the policy's "
    "step size (3e-4, 1e-3, 3e-3, 1e-2) and the critic's for all; AirLLM's guidance (1.5, 3, 5), weight of rewards "
    "(0.1, 1) and step size of the denoiser (3e-4, 1e-3); the linear map's form (normal numbers, orthonormal). With "
    "what stands here AirLLM earned -13.8 and -14.2, the linear map -13.3 and -13.4, PPO on the ranks -14.7 and -13.6, "
    "the rule -10.4.",
    equal="Environment steps, PPO's updates, networks and step sizes; steps of adaptation but for those that do not "
    "arrive.",
    refuted_by="With a linear map it earns more, or on the ranks themselves.",
    limits="A toy in the place of a language model, two layers of which matter; 4,500 steps. Accuracies of language "
    "models, the paper's 144 layers, its step sizes and wall-clock times cannot be asked here.",
    shared="The networks, the test set and what differs between the problems.",
    curve="episode/return",
    curve_from=0.4,
    minutes=9,
    quick=Quick(share=0.04, options={"evaluations": 1, "eval_episodes": 2}),
)
