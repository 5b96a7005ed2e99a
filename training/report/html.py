"""Pages written from templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ehr.whole_files import write_text
from training.readable import MISSING, format_number, format_percentage
from training.report.text import shown


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Writes a self-contained page from a template of this package, whole or not at all."""
    page = _environment().get_template(template).render(context)
    write_text(path, page)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=3: format_number(value, digits, MISSING)
    environment.filters["percentage"] = lambda value: format_percentage(value, MISSING)
    environment.filters["text"] = shown
    return environment
