"""`polyrl export`: what was written, how it was shown to be the policy, and how it is used."""

from __future__ import annotations

from pathlib import Path

from polyrl import trained_policy
from polyrl.exporting.export import Format
from polyrl.runtime.terminal import Terminal

USE: dict[Format, str] = {
    "numpy": "from policy import Policy\n\nPolicy('policy.npz').act(observation{mask})",
    "onnx": "from onnxruntime import InferenceSession\n\nInferenceSession('policy.onnx').run(None, {{{inputs}}})",
}


def run_export(run: Path, *, kind: Format, out: Path | None, overwrite: bool, trust_code: bool) -> None:
    """Write the files, and say how far they are from the policy.

    Raises:
        UserError: see `polyrl.export`.
    """
    made = trained_policy.export(run, kind, out=out, overwrite=overwrite, trust_code=trust_code)
    console = Terminal()
    for file in made.files:
        console.print(f"written   {file}  ({file.stat().st_size / 1000:,.0f} kB)", soft_wrap=True, highlight=False)
    compared = f"{made.observations:,} observations of two episodes and of the space: the same actions"
    apart = f", {made.difference:.1g} apart at most" if made.difference else ", to the last digit"
    console.print(f"compared  {compared}{apart}", soft_wrap=True, highlight=False)
    console.print()
    mask = ", action_mask" if made.masked else ""
    inputs = ", ".join(f"'{name}': ..." for name in made.inputs)
    console.print(USE[kind].format(mask=mask, inputs=inputs), soft_wrap=True, highlight=False, markup=False)
