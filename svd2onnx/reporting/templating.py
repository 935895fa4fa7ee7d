"""How all templates are rendered: a name that is not given is an error, and tags leave no blank lines."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(package: str, *, autoescape: bool = False) -> Environment:
    """The templates in the folder ``templates`` of ``package``; HTML wants its values escaped."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
