"""Modules that can be called: `ftbert.finetune` is the module and the function, whichever was imported first.

Importing a submodule binds its name in the package, so a function of the same name there would be replaced by the
module as soon as somebody wrote `from ftbert.finetune import ...`.
"""

import sys
import types
from typing import Any

__all__ = ["make_callable"]


class _CallableModule(types.ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


def make_callable(name: str) -> None:
    """Calling the module of this name calls the function that has its last part as name. For a module's last line."""
    sys.modules[name].__class__ = _CallableModule
