"""Turns a matplotlib figure into SVG for the report: without inline styles, and in a light and a dark colour scheme.

matplotlib's own SVG is not used as it is, because the page's Content-Security-Policy allows one style sheet, by its
hash, and no inline style; matplotlib writes a style attribute on nearly every element (1,934 in the 34 plots of the
tests' sample report). It also repeats ids between figures, has fixed colours, and is larger (975 kB for these plots,
689 kB here). Embedding it as `<img>` would keep its styles, but lose dark mode, selectable text, and the descriptions
that screen readers use. Knows colours and markup, not what is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Mapping
from xml.etree import ElementTree

from matplotlib.figure import Figure
from matplotlib.text import Text

# Colour name → (light, dark). After Okabe and Ito's palette, which colour-blind readers can tell apart; the dark
# scheme's colours are lighter.
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
COLOURS = {name: light for name, (light, _) in PALETTE.items()}

# matplotlib settings for figures that `figure_to_svg` takes.
MATPLOTLIB_STYLE = {
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


def stylesheet() -> str:
    """Return the CSS that all figures of a page share: one class per colour, which follows the reader's scheme."""
    light = "".join(f"--{name}:{PALETTE[name][0]};" for name in PALETTE)
    dark = "".join(f"--{name}:{PALETTE[name][1]};" for name in PALETTE)
    rules = "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in PALETTE)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}\n"
        ".plot text{font-variant-numeric:tabular-nums}\n"
    )


def printable(text: str) -> str:
    """Return a text without control characters, which XML doesn't allow."""
    return "".join(c for c in text if c.isprintable() or c in "\n\N{NO-BREAK SPACE}")


_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_ROUNDED_ATTRIBUTES = {"d", "height", "transform", "width", "x", "y"}
_DECIMALS = re.compile(r"(\.\d\d)\d+")  # kept: two decimals, a hundredth of a pixel
_FONT = re.compile(r"(?:(bold|\d+) )?([\d.]+)px ")


def figure_to_svg(figure: Figure, title: str, description: str, *, standalone: bool = False) -> str:
    """Return a figure as SVG text without inline styles, external references, dates, or ids that other figures have.

    Inline styles become attributes and classes; classes let the page choose light or dark colours, and without a style
    sheet the light ones show. The same figure gives the same text. standalone: a file of its own, with its style sheet.
    """
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))
    output = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib's font only measures text; the page shows it in the reader's font, which has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(output, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(output.getvalue())
    names = {light: name for name, light in COLOURS.items()}
    for parent in [element for element in root.iter() if element.find(_SVG + "style") is not None]:
        parent.remove(parent.find(_SVG + "style"))  # replaced by the attributes of the root, set below
    for element in root.iter():
        _style_to_attributes(element, names)
    root.attrib |= {"stroke-linejoin": "round", "font-family": "system-ui, sans-serif"}
    _rename_ids(root, f"p{zlib.crc32(output.getvalue()):08x}")
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update(
        {"width": width, "height": height, "class": "plot", "role": "img", "aria-label": printable(title)}
    )
    head = [ElementTree.Element(_SVG + "title"), ElementTree.Element(_SVG + "desc")]
    head[0].text, head[1].text = printable(title), printable(description)
    if standalone:
        head.append(ElementTree.Element(_SVG + "style"))
        head[2].text = stylesheet()
    for index, element in enumerate(head):
        root.insert(index, element)
    ElementTree.register_namespace("", _SVG[1:-1])
    text = ElementTree.tostring(root, encoding="unicode")
    return text + "\n" if standalone else text.replace(f' xmlns="{_SVG[1:-1]}"', "", 1)


def _style_to_attributes(element: ElementTree.Element, colour_names: Mapping[str, str]) -> None:
    """Replace an inline style by attributes, and its colours also by classes."""
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
        if name in ("fill", "stroke") and value in colour_names:
            classes.append(f"{name[0]}-{colour_names[value]}")
    if element.tag == _SVG + "text" and not any(name.startswith("f-") for name in classes):
        classes.append("f-ink")
    if classes:
        element.attrib["class"] = " ".join(classes)
    for name in _ROUNDED_ATTRIBUTES & element.attrib.keys():
        element.attrib[name] = _DECIMALS.sub(r"\1", element.attrib[name])
    if _XLINK in element.attrib:
        element.attrib["href"] = element.attrib.pop(_XLINK)


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Remove ids that nothing refers to, and put a prefix of this figure before the others."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        if element.attrib.get("id") in used:
            element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
        else:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name in ("href", "clip-path"):
                element.attrib[name] = value.replace("#", f"#{prefix}-")
