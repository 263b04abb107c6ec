"""`ftbert finetune` and `pretrain`."""

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
