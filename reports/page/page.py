"""Writes report.html: one file, no network, nothing in it can run but our own script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.summary import Summary
from probes.contract.rundir import REPORT, RunDir, write_atomically
from reports.page.context import build_context

_STYLES = ("page.css", "flamegraph.css")
_SCRIPTS = ("page.js", "flamegraph.js")


def write_report(run: RunDir, summary: Summary) -> Path:
    """Writes ``report.html`` into the run directory.

    Args:
        run: Where to.
        summary: What to show.

    Returns:
        The page's path.

    Raises:
        RunDirError: It cannot be written there.
    """
    path = run.path / REPORT
    write_atomically(path, render(summary), is_private=True)
    return path


def render(summary: Summary) -> str:
    """The whole page as HTML."""
    return render_page("report.html.j2", build_context(summary), _STYLES, _SCRIPTS)


def render_page(
    template: str, context: Mapping[str, Any], styles: Sequence[str], scripts: Sequence[str]
) -> str:
    """A page of one file: template, context, and assets of ours set inline.

    Args:
        template: Its name in ``templates/``.
        context: What it shows; ``figure_css`` holds the styles of its figures.
        styles: Style sheets of ``assets/``.
        scripts: Scripts of ``assets/``.
    """
    css = "\n".join(_asset(name) for name in styles) + "\n" + str(context["figure_css"])
    script = "\n".join(_asset(name) for name in scripts)
    page = (
        _environment()
        .get_template(template)
        .render(
            **context,
            # Our own files, never a stranger's text; the policy names exactly these two by hash.
            css=Markup(css),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=content_security_policy(css, script),
        )
    )
    # A file name that is not UTF-8 comes as lone surrogates, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    """With the templates compiled once for all pages of a process."""
    return Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def content_security_policy(css: str, script: str) -> str:
    """A policy that allows this style, this script and embedded images, and no network at all."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(css)}'",
            f"script-src '{_hash(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _asset(name: str) -> str:
    return (files("reports") / "assets" / name).read_text(encoding="utf-8")
