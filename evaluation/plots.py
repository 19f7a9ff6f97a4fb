"""Plots of an evaluation as SVG text: the same bytes every time, light and dark, readable without colour or eyes.

Knows matplotlib and the shape of the numbers; not where they come from, nor the page they stand on. Every figure is
about 360 pixels wide, so that a page can lay them side by side or below each other without scaling text. Intervals are
`{"value", "low", "high", "n"}`; what is missing or not a number is left out of a plot, never drawn as zero.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

Interval = Mapping[str, Any]

# Token → (light, dark). Okabe and Ito's colours, which stay apart for the colour-blind; the dark ones are lightened.
PALETTE = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1f2328", "#e4e7ea"),
    "muted": ("#5c646d", "#a4acb5"),
    "grid": ("#e3e6e9", "#31373d"),
    "blue": ("#0a6cb0", "#6db6ee"),
    "orange": ("#c74e00", "#ff9a55"),
    "green": ("#007d5c", "#43c7a1"),
    "purple": ("#a8487e", "#e79cc4"),
}
COLOURS = {token: light for token, (light, _) in PALETTE.items()}
SERIES = (("blue", "-", "o"), ("orange", "--", "s"), ("green", "-.", "^"), ("purple", ":", "D"))

WIDTH = 360  # pixels, one to the point
STYLE = {
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": COLOURS["paper"],
    "font.size": 10,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "lethe",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["muted"],
    "xtick.labelsize": 9,
    "ytick.color": COLOURS["muted"],
    "ytick.labelsize": 9,
}


def style() -> str:
    """The CSS every figure of this module needs, once per page: a class per colour, following the reader's scheme."""
    light = "".join(f"--{name}:{PALETTE[name][0]};" for name in PALETTE)
    dark = "".join(f"--{name}:{PALETTE[name][1]};" for name in PALETTE)
    rules = "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in PALETTE)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}\n"
        ".plot text{font-variant-numeric:tabular-nums}\n"
    )


def metric_curve(
    evaluations: list[dict[str, Any]], *, parameter: str, chosen: float, target: float | None, standalone: bool = True
) -> str:
    """Metric and objective against the tuned parameter, as SVG text.

    evaluations: {"x", "objective", "metric"} in the order they were made. target: where the metric should be, if known.
    standalone: a file of its own (namespace, styles inside), not a part of a page. ValueError without evaluations.
    """
    if not evaluations:
        raise ValueError("no evaluations to draw")
    axes = {"metric": "metric", "objective": "objective, lower is better"}
    drawn = {key: sorted(_points(evaluations, "x", key)) for key in axes}
    with matplotlib.rc_context(STYLE):
        figure = _figure(330)
        panels = figure.subplots(2, 1, sharex=True)
        for panel, (key, label), (colour, line, marker) in zip(panels, axes.items(), SERIES, strict=False):
            x, y = [point[0] for point in drawn[key]], [point[1] for point in drawn[key]]
            panel.plot(x, y, line, marker=marker, color=COLOURS[colour])
            panel.axvline(chosen, color=COLOURS["ink"], linewidth=1)
            panel.set_ylabel(label)
            panel.margins(y=0.15)
        if target is not None and math.isfinite(target):
            panels[0].axhline(target, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1)
            _note(panels[0], f"target {_short(target)}", (1, target), "bottom")
        every = [point[0] for points in drawn.values() for point in points]
        if every and min(every) > 0 and max(every) > 30 * min(every):
            panels[1].set_xscale("log")
        panels[1].set_xlabel(parameter)
        title = f"Metric and objective against {parameter}"
        panels[0].set_title(f"Tuning {parameter}: {_short(chosen)} chosen")
        best = min((y for _, y in drawn["objective"]), default=math.nan)
        return _svg(
            figure,
            title,
            f"{len(evaluations)} evaluations of {parameter}; chosen {_short(chosen)}, lowest objective {_short(best)}"
            + (f", target of the metric {_short(target)}." if target is not None else "."),
            standalone=standalone,
        )


def _number(value: Any) -> float | None:
    """A finite float, or None for what can't be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _points(rows: Iterable[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    pairs = [(_number(row.get(x)), _number(row.get(y))) for row in rows]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _clean(text: str) -> str:
    """Text without characters that XML can't carry."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(_clean(text), width)) or " "


def _figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; height and width in pixels."""
    return Figure(figsize=(width / 72, height / 72))


def _note(axes: Axes, text: str, at: tuple[float, float], vertical: str) -> None:
    """A small right-aligned note; x in shares of the axes, y in data."""
    axes.annotate(
        text,
        at,
        xycoords=axes.get_yaxis_transform(),
        ha="right",
        va=vertical,
        fontsize=9,
        color=COLOURS["muted"],
        annotation_clip=False,
    )


_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"(?:(bold|\d+) )?([\d.]+)px ")


def _svg(figure: Figure, title: str, description: str, *, standalone: bool = False) -> str:
    """The figure as SVG text without inline styles, outside references, dates, or ids that another figure could have.

    Inline styles become attributes and classes: a strict Content-Security-Policy forbids the former, and classes let
    the page choose light or dark. An SVG read without its styles still shows the light colours.
    """
    for text in figure.findobj(Text):
        text.set_text(_clean(text.get_text()))
    out = io.BytesIO()
    with warnings.catch_warnings():
        # Only widths are taken from matplotlib's font; the reader's own font has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(out.getvalue())
    tokens = {light: token for token, light in COLOURS.items()}
    for parent in [element for element in root.iter() if element.find(_SVG + "style") is not None]:
        parent.remove(parent.find(_SVG + "style"))  # one rule for the whole page; here as an attribute of the root
    for element in root.iter():
        _plain(element, tokens)
    root.attrib |= {"stroke-linejoin": "round", "font-family": "system-ui, sans-serif"}
    _rename(root, re.sub(r"\W+", "-", title.lower()).strip("-"))
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update({"width": width, "height": height, "class": "plot", "role": "img", "aria-label": _clean(title)})
    head = [ElementTree.Element(_SVG + "title"), ElementTree.Element(_SVG + "desc")]
    head[0].text, head[1].text = _clean(title), _clean(description)
    if standalone:
        head.append(ElementTree.Element(_SVG + "style"))
        head[2].text = style()
    for index, element in enumerate(head):
        root.insert(index, element)
    ElementTree.register_namespace("", _SVG[1:-1])
    text = ElementTree.tostring(root, encoding="unicode")
    return text + "\n" if standalone else text.replace(f' xmlns="{_SVG[1:-1]}"', "", 1)


def _plain(element: ElementTree.Element, tokens: Mapping[str, str]) -> None:
    """Turn an inline style into attributes, its colours also into classes."""
    classes = []
    for part in element.attrib.pop("style", "").split("; "):
        name, _, value = part.partition(": ")
        if not value:
            continue
        if name == "font" and (font := _FONT.match(value)):
            element.attrib["font-size"] = font[2]
            if font[1]:
                element.attrib["font-weight"] = font[1]
        elif name not in ("font", "font-family"):
            element.attrib[name] = value
        if name in ("fill", "stroke") and value in tokens:
            classes.append(f"{name[0]}-{tokens[value]}")
    if element.tag == _SVG + "text" and not any(name.startswith("f-") for name in classes):
        classes.append("f-ink")
    if classes:
        element.attrib["class"] = " ".join(classes)
    if _XLINK in element.attrib:
        element.attrib["href"] = element.attrib.pop(_XLINK)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep only ids that are referred to, under a name of this figure's own."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        if element.attrib.get("id") in used:
            element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
        else:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name in ("href", "clip-path"):
                element.attrib[name] = value.replace("#", f"#{prefix}-")
