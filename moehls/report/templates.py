"""The templates of pages and drawings: a name and values go in, text comes out."""

from __future__ import annotations

from typing import Any

import jinja2

from moehls.resources import resource


def render(name: str, **values: Any) -> str:
    """The text of `templates/report/<name>` with these values; a value that it misses is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource("templates") / "report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
