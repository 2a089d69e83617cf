"""`$(NAME)` as Kubernetes expands it, on the loop's side and on the supervisor's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.commands import escape, expand, expand_environment
from amdahl_loop.domain.template import EnvVar
from amdahl_probe import plan as supervisor

VALUES = {"A": "1", "B": "$(A)", "C_D.e": "x"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        pytest.param("plain", "plain", id="nothing to do"),
        pytest.param("--n=$(A)", "--n=1", id="known"),
        pytest.param("$(A)$(A)", "11", id="twice"),
        pytest.param("$(NOBODY)", "$(NOBODY)", id="unknown stays"),
        pytest.param("$(B)", "$(A)", id="once only"),
        pytest.param("$$(A)", "$(A)", id="escaped"),
        pytest.param("$$$(A)", "$1", id="escaped dollar, then a reference"),
        pytest.param("$$", "$", id="a pair is one dollar"),
        pytest.param("$A ${A} $", "$A ${A} $", id="a shell's forms mean nothing"),
        pytest.param("$(A", "$(A", id="never closed"),
        pytest.param("$(C_D.e)", "x", id="dots and underscores"),
        pytest.param("$()", "$()", id="no name"),
    ],
)
def test_references_are_expanded_by_the_rules(text: str, expanded: str) -> None:
    """The API reference's rules for commands and variables."""
    assert expand(text, VALUES) == expanded


@given(text=st.text(alphabet="$()AB x{}", max_size=30))
def test_both_sides_agree(text: str) -> None:
    """Operator and supervisor share no code, and expand every text alike."""
    assert expand(text, VALUES) == supervisor.expand(text, VALUES)


@given(text=st.text(alphabet="$()AB x{}", max_size=30))
def test_escaped_text_survives(text: str) -> None:
    """Words of ours are never taken for references."""
    assert expand(escape(text), VALUES) == text


def test_a_variable_sees_those_before_it() -> None:
    """Knobs first, then the user's variables in order; a later one of the same name wins."""
    pairs = (("X", "$(K)-$(Y)"), ("Y", "y"), ("Z", "$(X) $(Y)"), ("Y", "$(Y)$(Y)"))
    variables = [EnvVar(name=name, value=value) for name, value in pairs]
    assert expand_environment({"K": "4"}, variables) == {"K": "4", "X": "4-$(Y)", "Y": "yy", "Z": "4-$(Y) y"}
