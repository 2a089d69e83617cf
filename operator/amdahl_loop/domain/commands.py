"""How does Kubernetes expand `$(NAME)`? The same rules hold where no kubelet does it.

Source: the API reference of `Container.command` and `EnvVar.value`: an unknown name stays as it is, `$$` is a literal
`$`, and an environment variable sees those before it.
"""

import re
from collections.abc import Iterable, Mapping

from amdahl_loop.domain.template import EnvVar

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text with every known `$(NAME)` replaced, once, from left to right."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else values.get(name, match.group())

    return _REFERENCE.sub(replace, text)


def escape(text: str) -> str:
    """Text that `expand` turns back into `text`, whatever it holds."""
    return text.replace("$", "$$")


def expand_environment(first: Mapping[str, str], variables: Iterable[EnvVar]) -> dict[str, str]:
    """A container's environment: `first` (the knobs), then the user's variables in order, each seeing those before."""
    values = dict(first)
    for variable in variables:
        values[variable.name] = expand(variable.value, values)
    return values
