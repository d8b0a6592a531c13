"""Networks that look at images by convolutions before their dense layers, for policies and critics of pixels.

An observation is one vector `[D]`, in which each image of the observation's space lies as it was flattened. Its
convolutions look at the images, and everything else of the observation goes to the dense layers as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpCritic, MlpCriticNetwork, MlpPolicy, MlpPolicyNetwork
from polyrl.models.base import Interface
from polyrl.models.control import ControlCritic, ControlPolicy, ExportedModule
from polyrl.models.critics import ActionValues, DiscreteQNetwork
from polyrl.models.distributions import Distribution
from polyrl.models.graph import Node
from polyrl.models.mlp import Activation, layer_sizes, mlp
from polyrl.models.networks import StackedMlp
from polyrl.recipe import hyperparameter
from polyrl.tasks.control.spaces import Image

CONVOLUTIONS_HELP = (
    "convolutions that look at images first, filters x kernel x stride each; auto: 32x8x4,64x4x2,64x3x1 (Nature's DQN) "
    "for sides from 36 on, 16x3x1,32x3x2 from 5 on, else one layer"
)
NATURE = "32x8x4,64x4x2,64x3x1"
"""Layers of doi:10.1038/nature14236."""
SMALL = "16x3x1,32x3x2"


def convolutions_of(text: str, image: Image) -> list[tuple[int, int, int]]:
    """Filters, kernel and stride of each layer for an image.

    Raises:
        UserError: the text says something else, or a kernel is larger than what it looks at.
    """
    side = min(image.height, image.width)
    fitting = NATURE if side >= 36 else SMALL if side >= 5 else f"16x{min(side, 3)}x1"
    said = fitting if text == "auto" else text
    found = list[tuple[int, int, int]]()
    for layer in said.split(","):
        try:
            filters, kernel, stride = (int(number) for number in layer.split("x"))
        except ValueError:
            filters = kernel = stride = 0
        if min(filters, kernel, stride) < 1:
            raise UserError(
                f"The convolutions are '{text}'; write filters, kernel and stride of each, such as 16x3x1,32x3x2."
            )
        if kernel > side:
            raise UserError(
                f"The convolution {layer} looks at squares of {kernel}, and what it is shown is {side} high or wide "
                f"(the image is {image.height} by {image.width}); give --convolutions smaller ones."
            )
        found.append((filters, kernel, stride))
        side = (side - kernel) // stride + 1
    return found


class ImageFeatures(ExportedModule):
    """Observations `[..., D]` to features `[..., F]`: of every image what its convolutions give, then all else.

    Attributes:
        images: where they lie.
        towers: the convolutions of each, with relu after each one.
        rest: places `[D - pixels]` of what belongs to no image.
        size: F.
    """

    rest: Tensor

    def __init__(
        self,
        inputs: int,
        images: Sequence[Image],
        convolutions: str,
        *,
        orthogonal: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        self.images = tuple(images)
        self.register_buffer("rest", torch.from_numpy(np.flatnonzero(~pixels_of(inputs, images))), persistent=False)
        self.towers = nn.ModuleList()
        self.size = len(self.rest)
        for image in self.images:
            layers, channels, height, width = list[nn.Module](), image.channels, image.height, image.width
            for filters, kernel, stride in convolutions_of(convolutions, image):
                layer = nn.Conv2d(channels, filters, kernel, stride)
                bound = 1 / math.sqrt(channels * kernel * kernel)
                for tensor in layer.parameters():
                    if not orthogonal:
                        nn.init.uniform_(tensor, -bound, bound, generator=generator)
                    elif tensor.dim() > 1:
                        nn.init.orthogonal_(tensor, math.sqrt(2), generator=generator)
                    else:
                        nn.init.zeros_(tensor)
                layers += [layer, nn.ReLU()]
                channels, height, width = filters, (height - kernel) // stride + 1, (width - kernel) // stride + 1
            self.towers.append(nn.Sequential(*layers))
            self.size += channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        """Features of observations."""
        flat = x.reshape(-1, x.shape[-1])
        found = [tower(image.of(flat)).flatten(1) for image, tower in zip(self.images, self.towers, strict=True)]
        return torch.cat([*found, flat[:, self.rest]], -1).reshape(*x.shape[:-1], self.size)

    def nodes(self) -> list[Node]:
        """The same for export."""
        lists = []
        for image, tower in zip(self.images, self.towers, strict=True):
            settings = dataclasses.asdict(image)
            begin = settings.pop("begin")
            nodes = [
                Node("take", settings={"begin": begin, "end": begin + image.size}),
                Node("image", settings=settings),
            ]
            for layer in tower.children():
                if isinstance(layer, nn.Conv2d):
                    assert layer.bias is not None
                    arrays = {"weight": layer.weight.data.numpy().copy(), "bias": layer.bias.data.numpy().copy()}
                    nodes.append(Node("convolve", arrays, {"stride": int(layer.stride[0])}))
                else:
                    nodes.append(Node("relu"))
            lists.append([*nodes, Node("flatten")])
        if len(self.rest):
            lists.append([Node("pick", {"places": self.rest.numpy().copy()})])
        return [Node("beside", lists=lists)] if len(lists) > 1 else lists[0]


def pixels_of(inputs: int, images: Sequence[Image]) -> NDArray[np.bool_]:
    """Which of `inputs` numbers belong to images, `[D]`."""
    found = np.zeros(inputs, dtype=bool)
    for image in images:
        found[image.begin : image.begin + image.size] = True
    return found


def images_in(interface: Interface, owner: str) -> tuple[Image, ...]:
    """The images that a task shows.

    Raises:
        UserError: there are none.
    """
    if not interface.images:
        raise UserError(f"{owner} looks at images, and {interface.task} shows none; leave +cnn away.")
    return interface.images


def image_policy(
    distribution: Distribution,
    continuous: NDArray[np.bool_],
    images: Sequence[Image],
    *,
    convolutions: str,
    hidden: str,
    activation: Activation,
    orthogonal: bool,
    normalize: bool,
    stream: torch.Generator,
) -> ControlPolicy:
    """A policy of images; of the `continuous` numbers `[D]` those that are no pixels are normalized."""
    features = ImageFeatures(len(continuous), images, convolutions, orthogonal=orthogonal, generator=stream)
    gain = 0.01 if orthogonal else None
    head = mlp(features.size, layer_sizes(hidden), distribution.size, activation, gain=gain, generator=stream)
    others = continuous & ~pixels_of(len(continuous), images)
    network = nn.Sequential(features, *head)
    return ControlPolicy(network, distribution, others, normalize=normalize and bool(others.any()))


def image_critic(
    inputs: int,
    images: Sequence[Image],
    *,
    convolutions: str,
    hidden: str,
    activation: Activation,
    orthogonal: bool,
    stream: torch.Generator,
) -> ControlCritic:
    """A critic of images."""
    features = ImageFeatures(inputs, images, convolutions, orthogonal=orthogonal, generator=stream)
    gain = 1.0 if orthogonal else None
    head = mlp(features.size, layer_sizes(hidden), 1, activation, gain=gain, generator=stream)
    return ControlCritic(nn.Sequential(features, *head))


class ImageMlp(StackedMlp):
    """A stack of layers on what convolutions give.

    Attributes:
        features: the convolutions.
    """

    dense: ClassVar[bool] = False

    def __init__(self, features: ImageFeatures, *args: Any, **kwargs: Any):
        super().__init__(features.size, *args, **kwargs)
        self.features = features

    def forward(self, x: Tensor, chosen: slice | Tensor | None = None) -> Tensor:
        """Outputs `[..., members, O]` of observations `[..., D]`."""
        return super().forward(self.features(x), chosen)

    def passes_to_train(self) -> None:
        """None: convolutions go by autograd."""

    def nodes(self) -> list[Node]:
        """Convolutions and layers for export."""
        return [*self.features.nodes(), *super().nodes()]


@dataclass(frozen=True, kw_only=True)
class CnnQNetwork(DiscreteQNetwork):
    """Values of each of a few actions, by one network that looks at images by convolutions."""

    convolutions: str = hyperparameter("auto", CONVOLUTIONS_HELP)

    def make(self, interface: Interface, stream: torch.Generator) -> ActionValues:
        """A network of the task's images and its few actions."""
        images, outputs = images_in(interface, self.name), interface.choices("A critic of each action") + self.dueling
        features = ImageFeatures(
            interface.observation_size, images, self.convolutions, orthogonal=False, generator=stream
        )
        sizes = layer_sizes(self.hidden)
        network = ImageMlp(features, sizes, outputs, activation=self.activation, generator=stream)
        return ActionValues(network, dueling=self.dueling)


@dataclass(frozen=True, kw_only=True)
class CnnPolicy(MlpPolicy):
    """A policy over any kind of actions that looks at images by convolutions."""

    convolutions: str = hyperparameter("auto", CONVOLUTIONS_HELP)

    def make(self, interface: Interface, stream: torch.Generator) -> MlpPolicyNetwork:
        """A network of the task's images and actions."""
        policy = image_policy(
            self.distribution(interface),
            interface.continuous,
            images_in(interface, self.name),
            convolutions=self.convolutions,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            normalize=self.normalize_observation,
            stream=stream,
        )
        return MlpPolicyNetwork(policy, masked=interface.masked > 0)


@dataclass(frozen=True, kw_only=True)
class CnnCritic(MlpCritic):
    """A critic of states beside a `CnnPolicy`, which looks at images by convolutions of its own."""

    convolutions: str = hyperparameter("auto", CONVOLUTIONS_HELP)

    def make(self, interface: Interface, stream: torch.Generator) -> MlpCriticNetwork:
        """A network of the task's images."""
        critic = image_critic(
            interface.observation_size,
            images_in(interface, self.name),
            convolutions=self.convolutions,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            stream=stream,
        )
        return MlpCriticNetwork(critic)
