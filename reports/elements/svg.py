"""A matplotlib figure as SVG inside the page: small, named, in the page's colours.

Without style attributes, which the page's Content-Security-Policy forbids: they become classes.
"""

from __future__ import annotations

import io
import re

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from reports.elements.style import CSS_VARIABLES

_TAG = re.compile(r"<[A-Za-z][^<>]*>")  # matplotlib escapes both signs in texts and in values
_STYLE = re.compile(r' style="([^"]*)"')
_ID = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(?:url\(#|xlink:href="#)([^")]+)')
_FONT = re.compile(r"font: ((?:italic |oblique )?)((?:bold |[1-9]00 )?)([0-9.]+px) [^;]*")
_LONG_NUMBER = re.compile(r"(?<=[\s,(\"LMCQ-])(\d+\.\d{2})\d+")


class StyleSheet:
    """The style declarations of all figures of one page, each once, as classes."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def class_of(self, declarations: str) -> str:
        """The class that stands for these declarations."""
        return self._classes.setdefault(declarations, f"m{len(self._classes)}")

    @property
    def css(self) -> str:
        """The rules."""
        return "".join(f".{name}{{{body}}}" for body, name in self._classes.items())


def inline_svg(figure: Figure, figure_id: str, label: str, sheet: StyleSheet) -> Markup:
    """Turns a figure into an ``<svg>`` element.

    Args:
        figure: Drawn with the stand-in colours of ``reports.elements.style``.
        figure_id: Unique in the page; all ids of the drawing begin with it.
        label: What a screen reader says instead of the drawing.
        sheet: Collects the styles.
    """
    raw = io.StringIO()
    figure.savefig(raw, format="svg", metadata={"Date": None, "Creator": None})
    text = raw.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    used = {name for tag in _TAG.findall(body) for name in _REFERENCE.findall(tag)}
    # A text of the drawing may be a stranger's, and looks like an attribute if he wants it to.
    body = _TAG.sub(lambda m: _own_names(m.group(), figure_id, used, sheet), body)
    body = _LONG_NUMBER.sub(r"\1", body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    body = re.sub(r"<g>\s*</g>\n?", "", body)
    head = f'<svg viewBox="{view.group(1)}" role="img" aria-label="{escape(label)}">'
    # matplotlib escaped the text of the drawing; the label is escaped above.
    return Markup(f"{head}\n{body}\n</svg>")  # noqa: S704


def _own_names(tag: str, figure_id: str, used: set[str], sheet: StyleSheet) -> str:
    """A tag with a class instead of its style, and ids that are this figure's alone."""
    # style="a" followed by clip-path="..." etc.: only the style attribute is replaced
    tag = _STYLE.sub(lambda m: f' class="{sheet.class_of(_declarations(m.group(1)))}"', tag)
    tag = _ID.sub(lambda m: f' id="{figure_id}-{m.group(1)}"' if m.group(1) in used else "", tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\g<1>{figure_id}-", tag)
    return tag.replace("xlink:href", "href")


def _declarations(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)  # the page's own font
    style = _FONT.sub(
        lambda m: (
            f"font-size: {m.group(3)}"
            + (f"; font-weight: {m.group(2).strip()}" if m.group(2) else "")
        ),
        style,
    )
    for stand_in, variable in CSS_VARIABLES.items():
        style = style.replace(stand_in, variable)
    return style.strip().rstrip(";")
