"""The frame of a report: one HTML file that needs nothing else, and runs only our own script.

Jinja2 comes with LlamaIndex (through ``banks``) and escapes every value; a policy inside the page
forbids any request, and any script and style whose hash is not ours.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from llama_index_embeddings_adapted.charts import COLOURS

_PACKAGE = "llama_index_embeddings_adapted"


def render(content: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        content: What ``templates/report.html.j2`` names; a name that is missing is an error.
    """
    style, script = (_part(f"report.{suffix}") for suffix in ("css", "js"))
    own = {"style": Markup(style), "script": Markup(script), "colours": COLOURS}
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return _template().render({**content, **own, **hashes})


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "templates"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2")


@functools.cache
def _part(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which a content policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
