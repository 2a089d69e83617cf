"""How does a command's result reach the user: as text for people, or as one JSON document?"""

from rich.console import RenderableType
from rich.text import Text

from amdahl_loop.cli.session import World
from amdahl_loop.cli.shapes import Shape


def emit(result: Shape, text: RenderableType, output: str, world: World) -> None:
    """Print one result; with `json` nothing else is on standard output."""
    if output == "json":
        print(result.model_dump_json(indent=2), file=world.stdout)
    else:
        world.console().print(text)


def note(message: str, world: World) -> None:
    """Tell people something beside the result, on standard error."""
    console = world.console(is_error=True)
    console.print(Text(message), soft_wrap=not console.is_terminal)
