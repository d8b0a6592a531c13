"""A policy as a graph of ONNX, from the environment's observation to the environment's action.

Each part of the observation is an input of its own where the space has several, `observation.position`; statistics are
applied in float64, as in training, and the rest is float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.exporting.document import Document

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError:
    raise UserError("--format onnx needs onnx, which is not installed: pip install 'polyrl[export]'.") from None

OPSET, IR = 17, 8
"""Read by every runtime since 2022."""
SIMPLE = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu"}


class _Graph:
    """Nodes and constants as they are added; values go by name."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]):
        self.arrays = arrays
        self.nodes, self.constants, self.inputs = list[Any](), dict[str, Any](), list[Any]()

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A tensor."""
        return self.named(f"constant-{len(self.constants)}", np.asarray(value, dtype=dtype))

    def named(self, name: str, array: NDArray[Any]) -> str:
        """A tensor under this name."""
        self.constants.setdefault(name, numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """One operation; the name of what it gives."""
        out = out or f"{kind.lower()}-{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs], [out], **attributes))
        return out

    def cast(self, x: str, dtype: str) -> str:
        """The same in another type."""
        return self.add("Cast", x, to=_element(dtype))

    # ------------------------------------------------------------------------------------------------- observation

    def encoded(self, space: Mapping[str, Any], name: str) -> str:
        """Inputs of a space, and what makes them numbers `[N, D]` float64.

        Raises:
            UserError: lists of any length, or two parts whose inputs would have one name.
        """
        kind = space["kind"]
        if kind in ("Dict", "Tuple"):
            parts = [self.encoded(part, f"{name}.{key}") for key, part in space["parts"] if _has_numbers(part)]
            return self.add("Concat", *parts, axis=1)
        if kind == "Sequence":
            raise UserError("ONNX has no input for lists of any length, as the observation is; use --format numpy.")
        if kind in ("Discrete", "MultiDiscrete"):
            shape = space.get("shape", [])
            self.input(name, "int64", shape)
            starts, sizes = np.atleast_1d(space["start"]), space.get("sizes") or [space["n"]]
            flat = self.add("Reshape", name, self.constant([-1, len(sizes)]))
            places = self.add("Sub", flat, self.constant(starts))
            columns = list[str]()
            for at, size in enumerate(sizes):  # runtimes have no OneHot in float64
                one_hot = self.add("Equal", self.columns(places, at, at + 1), self.constant([[*range(size)]]))
                columns.append(self.cast(one_hot, "float64"))
            return self.add("Concat", *columns, axis=1)
        stated = space.get("dtype", "int8" if kind == "MultiBinary" else "float64")
        self.input(name, stated, space["shape"])
        flat = self.add("Reshape", name, self.constant([-1, int(np.prod(space["shape"]))]))
        wide = self.cast(flat, "float64")
        return self.add("Div", wide, self.constant(255.0, np.float64)) if kind == "bytes" else wide

    def input(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """An input of the graph, `[N, *shape]`."""
        if any(name == there.name for there in self.inputs):
            raise UserError(
                f"Two parts of the observation would be the input {name}; give them names without dots, or use "
                "--format numpy."
            )
        self.inputs.append(helper.make_tensor_value_info(name, _element(dtype), ["N", *shape]))

    # ------------------------------------------------------------------------------------------------------- nodes

    def run(self, nodes: Sequence[Mapping[str, Any]], x: str) -> str:
        """Nodes of a policy, one after another."""
        for node in nodes:
            kind, settings = node["kind"], node["settings"]
            arrays = {name: self.named(place, self.arrays[place]) for name, place in node["arrays"].items()}
            if kind == "beside":
                x = self.add("Concat", *(self.run(inner, x) for inner in node["lists"]), axis=1)
            elif kind == "normalize":
                limits = [self.constant(sign * settings["clip"], np.float64) for sign in (-1, 1)]
                white = self.add("Div", self.add("Sub", x, arrays["mean"]), arrays["deviation"])
                x = self.cast(self.add("Clip", white, *limits), "float32")
            elif kind == "linear":
                x = self.add("Add", self.add("MatMul", x, arrays["weight"]), arrays["bias"])
            elif kind in SIMPLE:
                x = self.add(SIMPLE[kind], x)
            elif kind == "layer-norm":
                x = self.add("LayerNormalization", x, arrays["scale"], arrays["shift"], axis=-1, **settings)
            elif kind == "take":
                x = self.columns(x, settings["begin"], settings["end"])
            elif kind == "allow":
                x = self.add("Where", "action_mask", x, self.constant(settings["blocked"], np.float32))
            elif kind == "expert":
                x = self.expert(x, settings["experts"], settings["numbers"])
            elif kind == "pick":
                x = self.add("Gather", x, arrays["places"], axis=1)
            elif kind == "image":
                sizes = [settings[name] for name in ("channels", "height", "width")]
                first = settings["channels_first"]
                x = self.add("Reshape", x, self.constant([-1, *(sizes if first else [*sizes[1:], sizes[0]])]))
                x = x if first else self.add("Transpose", x, perm=[0, 3, 1, 2])
            elif kind == "convolve":
                x = self.add("Conv", x, arrays["weight"], arrays["bias"], strides=[settings["stride"]] * 2)
            elif kind == "flatten":
                x = self.add("Flatten", x)
            elif kind == "argmax":
                x = self.add("ArgMax", x, axis=1, keepdims=0)
            elif kind == "argmax-each":
                ends = np.cumsum(settings["sizes"]).tolist()
                parts = [self.columns(x, e - n, e) for n, e in zip(settings["sizes"], ends, strict=True)]
                x = self.add("Concat", *(self.add("ArgMax", p, axis=1, keepdims=1) for p in parts), axis=1)
            elif kind == "positive":
                x = self.cast(self.add("Greater", x, self.constant(0, np.float32)), "int64")
            elif kind == "scale":
                x = self.add("Add", self.add("Mul", x, arrays["half"]), arrays["middle"])
            else:
                raise UserError(f"There is no operation of ONNX for '{kind}'; use --format numpy.")
        return x

    def columns(self, x: str, begin: int, end: int) -> str:
        """Columns `begin` to `end`."""
        return self.add("Slice", x, self.constant([begin]), self.constant([end]), self.constant([1]))

    def expert(self, x: str, experts: int, numbers: int) -> str:
        """The columns of the expert of largest weight, whose weights are the last columns."""
        weights = self.add("Slice", x, self.constant([-experts]), self.constant([2**31 - 1]), self.constant([1]))
        best = self.add("ArgMax", weights, axis=1, keepdims=1)
        first = self.add("Mul", best, self.constant(numbers))
        return self.add("GatherElements", x, self.add("Add", first, self.constant([[*range(numbers)]])), axis=1)

    def actions(self, x: str, space: Mapping[str, Any]) -> None:
        """What the environment takes, as the output `action`."""
        shape, dtype = [-1, *space["shape"]], space["dtype"]
        if space["kind"] == "Box":
            wide = self.cast(x, dtype)
            bounds = [self.constant(self.arrays[n].reshape(1, -1), dtype) for n in ("action_low", "action_high")]
            inside = self.add("Min", self.add("Max", wide, bounds[0]), bounds[1])
            self.add("Reshape", inside, self.constant(shape), out="action")
            return
        whole = self.add("Reshape", x, self.constant(shape))
        moved = self.add("Add", whole, self.constant(self.arrays["action_start"]))
        self.add("Cast", moved, to=_element(dtype), out="action")


def _has_numbers(space: Mapping[str, Any]) -> bool:
    """Whether a part of an observation has any; runtimes take no inputs of size 0."""
    if space["kind"] in ("Dict", "Tuple"):
        return any(_has_numbers(part) for _, part in space["parts"])
    return 0 not in space.get("shape", [])


def _element(dtype: str) -> int:
    """ONNX's number of a NumPy type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def model(document: Document, *, encoded: bool = False) -> Any:
    """The policy as a model of ONNX; `encoded`: from observations that are numbers already, `[N, D]` float64.

    Raises:
        UserError: something in it has no operation there.
    """
    about, graph = document.about, _Graph(document.arrays)
    if encoded:
        graph.input("observation", "float64", [document.size])
    x = "observation" if encoded else graph.encoded(about["observation"], "observation")
    if about["masked"]:
        graph.input("action_mask", "bool", [about["masked"]])
    if about["nodes"][0]["kind"] != "normalize":
        x = graph.cast(x, "float32")
    graph.actions(graph.run(about["nodes"], x), about["action"])
    shape = ["N", *about["action"]["shape"]]
    output = helper.make_tensor_value_info("action", _element(about["action"]["dtype"]), shape)
    made = helper.make_model(
        helper.make_graph(graph.nodes, "policy", graph.inputs, [output], [*graph.constants.values()]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="polyrl",
    )
    told = {name: about[name] for name in ("task", "method", "observation", "action")}
    helper.set_model_props(made, {name: x if isinstance(x, str) else json.dumps(x) for name, x in told.items()})
    onnx.checker.check_model(made)
    return made


def actions_of_encoded(document: Document, rows: NDArray[np.float64], masks: NDArray[np.bool_] | None) -> NDArray[Any]:
    """What the graph gives for encoded observations `[N, D]`, computed by ONNX's own reference."""
    given: dict[str, Any] = {"observation": rows} | ({} if masks is None else {"action_mask": masks})
    found: Any = ReferenceEvaluator(model(document, encoded=True)).run(None, given)
    return np.asarray(found[0])


def inputs_of(space: Mapping[str, Any], shown: Sequence[Any], name: str = "observation") -> dict[str, NDArray[Any]]:
    """Inputs of the graph for observations as the environment has them, `[N, ...]` each."""
    if space["kind"] in ("Dict", "Tuple"):
        found = dict[str, NDArray[Any]]()
        for key, part in space["parts"]:
            if _has_numbers(part):
                found |= inputs_of(part, [one[key] for one in shown], f"{name}.{key}")
        return found
    if space["kind"] in ("Discrete", "MultiDiscrete"):
        return {name: np.array(shown, dtype=np.int64)}
    return {name: np.array(shown, dtype=space.get("dtype", "int8" if space["kind"] == "MultiBinary" else "float64"))}


def actions_of(made: Any, document: Document, shown: Sequence[Any], masks: NDArray[np.bool_] | None) -> NDArray[Any]:
    """What a model gives for observations as the environment has them, computed by ONNX's own reference."""
    given = inputs_of(document.about["observation"], shown) | ({} if masks is None else {"action_mask": masks})
    found: Any = ReferenceEvaluator(made).run(None, given)
    return np.asarray(found[0])
