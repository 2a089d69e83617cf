"""What is written about each field of a model?

The string below a field, read from the source. Only the generator needs it, so the models do not pay for it at import.
"""

import ast
import inspect
import itertools
import textwrap
from functools import cache

from pydantic import BaseModel


class UndocumentedError(ValueError):
    """A field without a text: `kubectl explain` would have nothing to say."""


def describe_field(model: type[BaseModel], field: str) -> str:
    """The text below a field, on one line; UndocumentedError where there is none."""
    for parent in model.__mro__:
        if field in inspect.get_annotations(parent):
            text = _field_texts(parent).get(field)
            if text:
                return text
            raise UndocumentedError(f"{parent.__module__}.{parent.__qualname__}.{field} has no text below it; add one")
    raise UndocumentedError(f"{model.__qualname__} declares no field {field!r}")


@cache
def _field_texts(model: type) -> dict[str, str]:
    """Texts of the fields that a class itself declares."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for statement, below in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = _text_of(below)
            if text:
                texts[statement.target.id] = text
    return texts


def _text_of(statement: ast.stmt) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""
