"""Charts drawn: `draw.js` draws every description (`polyrl.runtime.drawing`), wherever it is seen.

In the comparison page, which makes descriptions as people switch its axes, in notebooks, and in files, for which `svg`
runs the same script in an engine of its own. Colours and strokes are those of `draw.css`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.runtime.drawing import Sheet

FOLDER = Path(__file__).parent


def read_file(name: str) -> str:
    """A script or style sheet of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- as SVG

RECORDER = """
const node = (parent, name, attributes = {}, text) => {
  const made = { name, attributes, text, children: [] };
  parent.children.push(made);
  return made;
};
const breadth = JSON.parse(BREADTHS);
const widthOf = (text, font = "13px") => {
  const bold = /^[67]00/.test(font) ? 1.08 : 1;
  const size = Number(font.match(/([\\d.]+)px/)[1]);
  return [...text].reduce((sum, letter) => sum + (breadth[letter] ?? 0.64), 0) * size * bold;
};
function drawn(text) {
  const root = { children: [] };
  polyrlDraw({ node, widthOf }).sheet(root, JSON.parse(text));
  return JSON.stringify(root.children);
}
"""
"""Elements as plain objects, and the breadth of letters: there is no document."""
BREADTHS = {
    **dict.fromkeys("ijlI|!'.,:; ", 0.31),
    **dict.fromkeys("frt()[]{}-/\\", 0.4),
    **dict.fromkeys("mMW@%w", 0.92),
    **dict.fromkeys("ABCDEFGHKLNOPQRSTUVXYZ", 0.69),
}
"""In ems of DejaVu Sans, the widest of the faces that pictures ask for; digits and all other letters take 0.64."""
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"


def svg(sheet: Sheet) -> str:
    """The sheet as an SVG file's text, which needs no script and no style sheet.

    Raises:
        UserError: the extra `figures` is not installed.
    """
    context = _engine()
    elements = json.loads(context.get("drawn")(json.dumps(sheet.stated())))
    inner = "".join(_written(element, {}, ()) for element in elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width} {sheet.height}" width="{sheet.width}" '
        f'height="{sheet.height}" role="img" aria-label="{_text(sheet.label)}" font-family="{FONT}">'
        f'<rect width="{sheet.width}" height="{sheet.height}" fill="#ffffff"/>{inner}</svg>\n'
    )


def _engine() -> Any:
    try:
        import quickjs
    except ImportError:
        raise UserError(
            "The picture needs the extra `figures`: pip install 'polyrl[figures]', then give the same command again."
        ) from None
    context = quickjs.Context()
    breadths = json.dumps(json.dumps(BREADTHS))
    context.eval(f"{read_file('draw.js')}{RECORDER.replace('BREADTHS', breadths, 1)}")
    return context


def _written(element: Mapping[str, Any], colours: Mapping[str, str], within: tuple[str, ...]) -> str:
    """An element and what is in it, with its looks as attributes."""
    classes = str(element["attributes"].get("class", "")).split()
    looks: dict[str, str] = {}
    own = dict(colours)
    for wanted, tag, of, declared in _rules():
        if of and of not in within:
            continue
        if (tag and tag != element["name"]) or not set(wanted) <= set(classes) or not (wanted or tag):
            continue
        for name, value in declared.items():
            (own if name.startswith("--") else looks)[name] = value
    looks = {name: _resolved(value, own) for name, value in looks.items() if name != "font-family"}
    shown = {k: v for k, v in element["attributes"].items() if k not in looks and not k.startswith("data-")}
    attributes = "".join(f' {name}="{_text(str(value))}"' for name, value in {**shown, **looks}.items())
    text = element.get("text")
    inner = "" if text is None else _text(str(text))
    inner += "".join(_written(child, own, (*within, *classes)) for child in element["children"])
    return f"<{element['name']}{attributes}>{inner}</{element['name']}>"


def _resolved(value: str, own: Mapping[str, str]) -> str:
    """A value of the style sheet without its variables."""
    known = {**_palette(), **own}
    while found := re.search(r"var\((--\w+)\)", value):
        value = value.replace(found[0], known.get(found[1], "none"))
    return value.removesuffix("px")


def _text(text: str) -> str:
    """Text as XML may hold it: escaped, and without what no XML file may have."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text), quote=True)


@cache
def _palette() -> dict[str, str]:
    """Colours of pages on white."""
    root = re.search(r":root \{(.*?)\}", read_file("page.css"), re.DOTALL)
    assert root is not None
    found = dict(re.findall(r"(--[\w-]+): ([^;]+);", root[1]))
    return {**found, "--page": "#ffffff"}


@cache
def _rules() -> list[tuple[tuple[str, ...], str, str, dict[str, str]]]:
    """Rules of the style sheet: classes, tag, the class of an element around it, and what is declared.

    In the order in which they count, those with more classes later.
    """
    found = []
    for selectors, body in re.findall(
        r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", read_file("draw.css"), flags=re.S)
    ):
        declared = dict(re.findall(r"([\w-]+):\s*([^;]+?)\s*(?:;|$)", body))
        for selector in selectors.split(","):
            *around, last = selector.split()
            tag, *classes = last.split(".")
            of = around[0].removeprefix(".") if around else ""
            found.append((tuple(classes), tag, of, declared))
    return sorted(found, key=lambda rule: len(rule[0]) + bool(rule[2]))


# ------------------------------------------------------------------------------------------------------- in notebooks

MOUNT = """
const space = document.getElementById("drawing").namespaceURI;
const node = (parent, name, attributes = {}, text) => {
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};
const ruler = document.createElement("canvas").getContext("2d");
const widthOf = (text, font = "13px") => {
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
};
const described = JSON.parse(document.getElementById("data").textContent);
polyrlDraw({ node, widthOf }).sheet(document.getElementById("drawing"), described);
"""


def frame(sheet: Sheet) -> str:
    """The sheet as an element of HTML that needs nothing else: a frame in which `draw.js` draws it."""
    palette = ";".join(f"{name}:{value}" for name, value in _palette().items())
    data = json.dumps(sheet.stated()).replace("<", "\\u003c")
    page = (
        f"<!doctype html><meta charset='utf-8'><style>:root{{{palette}}}body{{margin:0;font-family:{FONT}}}"
        f"{read_file('draw.css')}</style><svg id='drawing' xmlns='http://www.w3.org/2000/svg' width='{sheet.width}' "
        f"height='{sheet.height}' role='img' aria-label='{_text(sheet.label)}'></svg>"
        f"<script type='application/json' id='data'>{data}</script>"
        f"<script>{read_file('draw.js')}{MOUNT}</script>"
    )
    size = f'width="{sheet.width}" height="{sheet.height}"'
    return f'<iframe srcdoc="{escape(page, quote=True)}" {size} frameborder="0" sandbox="allow-scripts"></iframe>'


# ------------------------------------------------------------------------------------------------------------ as files


def save(sheet: Sheet, file: Path, scale: float = 2) -> Path:
    """Write the sheet into an SVG or PNG file; return the file.

    Raises:
        UserError: the extra `figures` is not installed.
    """
    text = svg(sheet)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        import vl_convert

        file.write_bytes(vl_convert.svg_to_png(text, scale=scale))
    else:
        file.write_text(text, encoding="utf-8")
    return file
