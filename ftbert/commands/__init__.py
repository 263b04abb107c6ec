"""The groups of the `ftbert` command, each a module with `register(app)`."""

__all__ = ["models", "online", "predicting", "training"]
