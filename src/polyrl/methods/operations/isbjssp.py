"""ISBJSSP-GNN: dispatch a job shop without buffers by a graph network over the operations that are left.

Operations are nodes. Each hears from the operation before and after it in its job, from the others on its machine and
from all, by weights of their own for each kind; operations that are done leave the graph, so it shrinks as work
proceeds. The machine that is asked takes one of the jobs that want it, by a softmax over their next operations. It is
trained by PPO on random shops.

The abstract was read, and the simulator of the same group's shop with buffers (arXiv:2106.01086); there is no code of
this paper. As in that simulator, machines with one job to choose from are not asked. Its rewards count the jobs that
wait (`costs=waiting`); that is another aim than a short makespan, and came to longer ones than time itself did, so time
is what costs here. Chosen, too: messages are means and not sums, so that values mean the same in small and in shrunken
graphs; what is known of a node beside its status, times and place in the job is whether its machine is down, for how
long that is held, and what was chosen at this instant; waiting, where a task offers it (`job-shop(waiting=yes)`), is
scored by what all operations come to; gamma is 1; sizes are for one core.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, draw_weights
from polyrl.parts.combinatorial import BuildSolutions, ConstructivePolicy, NetworkValues
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.operations.job_shop import JobShop

if TYPE_CHECKING:
    from polyrl.core.update import Draws

SLUG, YEAR, PAPER = "isbjssp", 2023, "arXiv:2302.02506"
TITLE = "Dispatching Rules for the Interrupting Swap-Allowed Blocking Job Shop by Graph Networks and PPO"
FORMULA = "h' = MLP([relu(pre), relu(suc), relu(dis), relu(all), h, h0]); pi = softmax MLP([h, mean h]) of candidates"
TASK = "job-shop"
STATIC = 4
"""Numbers of an operation that stay, as the network reads them."""


class OperationGraph(ConstructiveNetwork):
    """Rounds of messages between the operations that are left, a score of each, and a value of the shop."""

    reads_node_state = True

    def __init__(self, changing: int, width: int, rounds: int):
        super().__init__()
        self.embed = nn.Linear(STATIC + changing, width)
        self.kinds = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(rounds))  # before, after, machine, all
        self.join = nn.ModuleList(_two_layers(6 * width, width, width) for _ in range(rounds))
        self.score, self.wait = _two_layers(2 * width, width, 1), _two_layers(width, width, 1)
        self.worth = _two_layers(width, width, 1)

    def read(self, nodes: Tensor, present: Tensor) -> Memory:
        """What stays of operations, `[B, N, 4]`, and their edges; nodes are (job, machine, place, time)."""
        job, machine, place, time = nodes.unbind(-1)
        there = present & (job >= 0)  # not the node of waiting
        same_job = (job[..., None] == job[:, None]) & there[:, None]
        work = (same_job * time[:, None]).sum(-1)
        done = (same_job & (place[:, None] <= place[..., None])).float() @ time[..., None]
        follow = (same_job & (place[:, None] > place[..., None])).sum(-1)
        count = there.sum(1, keepdim=True).clamp(min=1)
        mean = (time * there).sum(1, keepdim=True) / count
        share = follow / same_job.sum(-1).clamp(min=1)
        static = torch.stack([time / mean, done[..., 0] / work.clamp(min=1), share, follow / 5], -1)
        chain = same_job & (place[:, None] == place[..., None] - 1)
        others = (machine[..., None] == machine[:, None]) & there[:, None] & ~torch.eye(len(job[0]), dtype=torch.bool)
        return {"static": static * there[..., None], "before": chain.float(), "others": others.float(), "there": there}

    def hidden(self, seen: Seen, memory: Memory) -> tuple[Tensor, Tensor]:
        """What operations come to after all rounds, `[B, K, N, D]`, and the mean of those left, `[B, K, D]`."""
        assert seen.node_state is not None
        there = seen.left[..., None].float()
        static = memory["static"][:, None].expand(-1, there.shape[1], -1, -1)
        first = torch.relu(self.embed(torch.cat([static, seen.node_state], -1)))
        before, others = memory["before"][:, None], memory["others"][:, None]
        rivals, left = (others @ there).clamp(min=1), there.sum(2, keepdim=True).clamp(min=1)
        h = first
        for kinds, join in zip(self.kinds, self.join, strict=True):
            pre, suc, dis, every = (kinds(h) * there).chunk(4, -1)
            told = [before @ pre, before.mT @ suc, (others @ dis) / rivals, every.sum(2, keepdim=True) / left]
            told[3] = told[3].expand_as(h)
            h = join(torch.cat([*(torch.relu(x) for x in told), h, first], -1))
        return h, (h * there).sum(2) / left[:, :, 0]

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """Of operations by themselves and the whole, of waiting by the whole."""
        return self._scores(*self.hidden(seen, memory), memory["there"])

    def _scores(self, h: Tensor, mean: Tensor, there: Tensor) -> Tensor:
        found = self.score(torch.cat([h, mean[:, :, None].expand_as(h)], -1))[..., 0]
        return torch.where(there[:, None], found, self.wait(mean))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Log-probability, entropy and value of the steps, `[B, T]` each."""
        seen = Seen.stored(batch)
        memory = self.read(seen.nodes, seen.present)
        h, mean = self.hidden(seen, memory)
        given = self.of_steps(self.masked(self._scores(h, mean, memory["there"]), seen), batch, wants)
        if "value" in wants:
            given["value"] = self.worth(mean)[..., 0].reshape(batch["action"].shape)
        return given


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


@dataclass(frozen=True, kw_only=True)
class OperationGraphPolicy(ConstructivePolicy):
    """Messages between the operations that are left, by the kind of their edge."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy", "value"})

    learning_rate: float = hyperparameter(5e-3, "Adam step size (paper, recalled: 2.5e-4)", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(1.0, "norm at which the gradient is clipped; none is off", above=0)
    width: int = hyperparameter(32, "numbers of an operation", low=1)
    rounds: int = hyperparameter(2, "rounds of messages (paper, recalled: 3)", low=0)

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> OperationGraph:
        """The network, all its matrices uniform within +-1 / sqrt(their inputs)."""
        network = OperationGraph(JobShop.state_features, self.width, self.rounds)
        draw_weights(network, stream)
        return network


@dataclass(frozen=True, kw_only=True)
class DispatchShops(BuildSolutions):
    """Dispatch random shops with the present policy, machine by machine, and note what jobs wait."""

    gives: ClassVar[frozenset[str]] = BuildSolutions.gives | {"node_state", "waited"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "waited": Field("[B, T]", "float32", "time units", "what all jobs wait from one decision to the next"),
    }

    instances: int = hyperparameter(128, "random shops in one iteration", low=1)


@dataclass(frozen=True, kw_only=True)
class ShopTime(Part):
    """Pay minus the time that passes, or minus the time that jobs wait: at doors, behind others, done but blocking."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "shop-time"
    needs: ClassVar[frozenset[str]] = frozenset({"waited", "reward", "nodes", "node_mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    costs: Literal["time", "waiting"] = hyperparameter(
        "time", "what costs one in a unit of time: the time itself, whose sum is the makespan, or each job that waits"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Put `reward` [B, T] in the place of minus time: in mean times of an operation, and waiting for each job."""
        job, time = experience["nodes"][:, 0, :, 0], experience["nodes"][:, 0, :, 3]
        mean = time.sum(1) / (experience["node_mask"][:, 0] & (job >= 0)).sum(1)
        if self.costs == "time":
            return experience.with_fields(reward=experience["reward"] / mean[:, None])
        return experience.with_fields(reward=-experience["waited"] / ((job.amax(1) + 1) * mean)[:, None])


@dataclass(frozen=True, kw_only=True)
class ShopValues(NetworkValues):
    """Measure what the policy's network says of the shop before each decision."""

    needs: ClassVar[frozenset[str]] = DispatchShops.gives - {"waited", "reward"}


def recipe() -> Recipe:
    """PPO on random shops of the task's size."""
    terms = (ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.05), EntropyBonus(entropy_coef=0.01))
    return Recipe(
        name=SLUG,
        models={"policy": OperationGraphPolicy(schedule="linear")},
        collect=DispatchShops(),
        score=(ShopTime(),),
        credit=(ShopValues(), GAE(gamma=1.0, gae_lambda=0.95), WhitenAdvantage()),
        updates=(Epochs((Update("policy", terms, Again()),), Fresh(), epochs=4, minibatches=8),),
        adds=("policy", "shop-time"),
        notes={
            "collect": "random shops go from event to event; a machine with several jobs at its door asks the policy",
            "score": "every unit of time costs one, so that the return is minus the makespan",
            "credit": "a decision is judged by all the time after it, against what the shop's value foretold",
            "select": "only machines with a choice are asked, and all these decisions count the same",
            "improve": "several epochs over whole episodes, safe because the clip stops ratios that moved far enough",
        },
    )
