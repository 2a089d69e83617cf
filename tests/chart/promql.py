"""Which series does a PromQL expression read, and by which labels? As much of the grammar as dashboard and alerts use."""

import re
from typing import NamedTuple

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\d[\w.]*|[A-Za-z_:][\w:]*|=~|!~|!=|\S')
_WORD = re.compile(r"[A-Za-z_:]")
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_OPERATORS = frozenset({"and", "or", "unless", "bool", "offset"})


class Matcher(NamedTuple):
    """What a label is held against."""

    label: str
    operator: str
    value: str


class Selector(NamedTuple):
    """A series' name with its matchers."""

    name: str
    matchers: tuple[Matcher, ...] = ()


class Reads(NamedTuple):
    """The series that an expression reads, and the labels that it groups or joins them by."""

    selectors: tuple[Selector, ...]
    labels: frozenset[str]


def read_expression(expression: str) -> Reads:
    """Every series and every grouping label of an expression, in the order of its text."""
    tokens = [*_TOKEN.findall(expression), ""]
    selectors: list[Selector] = []
    labels: set[str] = set()
    index = 0
    while tokens[index]:
        word, after = tokens[index], tokens[index + 1]
        index += 1
        if not _WORD.match(word) or (word in _OPERATORS | _GROUPING and after != "("):
            continue
        if after == "(" and word in _GROUPING:
            end = tokens.index(")", index)
            labels.update(token for token in tokens[index:end] if _WORD.match(token))
            index = end
        elif after == "{":
            end = tokens.index("}", index)
            selectors.append(Selector(word, _read_matchers(tokens[index + 1 : end])))
            index = end
        elif after not in _GROUPING | {"("}:
            selectors.append(Selector(word))
    return Reads(tuple(selectors), frozenset(labels))


def _read_matchers(tokens: list[str]) -> tuple[Matcher, ...]:
    """`label operator "value"`, with commas between."""
    parts = [token for token in tokens if token != ","]
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return tuple(Matcher(label, operator, value[1:-1]) for label, operator, value in triples)
