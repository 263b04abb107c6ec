"""The `ftbert` command: thin calls into the public functions. Commands import what they need, when they run."""

import importlib
import os
from typing import List, Optional

import typer

from ftbert import __version__
from ftbert.errors import FtbertError

__all__ = ["app", "main"]

app = typer.Typer(
    name="ftbert",
    help="A fine-tuned BERT text classifier, loaded once, answered as fast as the hardware allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_GROUPS = ("predicting", "models", "training", "online")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo("ftbert %s" % __version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Say which version this is, and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options of no command; the help is the app's."""


def _register() -> None:
    for name in _GROUPS:
        importlib.import_module("ftbert.commands." + name).register(app)


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 refused or failed, 2 misused, 130 interrupted."""
    # What TensorFlow says of itself at import is not what was asked for; its warnings and errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    _register()
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="ftbert", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except FtbertError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        # click ends so when the reader of a pipe (head, say) has gone; what it wanted is written.
        if isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except OSError as error:
        _complain(str(error))
        return 1
    except Exception as error:
        # Usage errors and aborts of click, which standalone mode would have handled.
        show = getattr(error, "show", None)
        if show is None:
            if type(error).__name__ == "Abort":
                return 130
            raise
        show()
        return int(getattr(error, "exit_code", 2))


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red"), Text(message), sep="")
