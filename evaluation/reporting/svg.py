"""From a matplotlib figure to SVG text that a strict page can carry: the same bytes every time, light and dark.

Knows colours and markup, not what is drawn. Text stays text, in the reader's font; matplotlib's only measures it.
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

# matplotlib settings under which figures are to be drawn.
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
    """The CSS every figure needs, once per page: a class per colour, following the reader's scheme."""
    light = "".join(f"--{name}:{PALETTE[name][0]};" for name in PALETTE)
    dark = "".join(f"--{name}:{PALETTE[name][1]};" for name in PALETTE)
    rules = "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in PALETTE)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}\n"
        ".plot text{font-variant-numeric:tabular-nums}\n"
    )


def clean(text: str) -> str:
    """Text without characters that XML can't carry."""
    return "".join(c for c in text if c.isprintable() or c in "\n\N{NO-BREAK SPACE}")


_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_MEASURES = {"d", "height", "transform", "width", "x", "y"}
_DECIMALS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a pixel is enough
_FONT = re.compile(r"(?:(bold|\d+) )?([\d.]+)px ")


def render(figure: Figure, title: str, description: str, *, standalone: bool = False) -> str:
    """The figure as SVG text without inline styles, outside references, dates, or ids that another figure could have.

    Inline styles become attributes and classes: a strict Content-Security-Policy forbids the former, and classes let
    the page choose light or dark. An SVG read without its styles still shows the light colours.
    """
    for text in figure.findobj(Text):
        text.set_text(clean(text.get_text()))
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
    _rename(root, f"p{zlib.crc32(out.getvalue()):08x}")
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update({"width": width, "height": height, "class": "plot", "role": "img", "aria-label": clean(title)})
    head = [ElementTree.Element(_SVG + "title"), ElementTree.Element(_SVG + "desc")]
    head[0].text, head[1].text = clean(title), clean(description)
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
    for name in _MEASURES & element.attrib.keys():
        element.attrib[name] = _DECIMALS.sub(r"\1", element.attrib[name])
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
