"""Prints the tests that can use a package which README's test command does not install, as pytest's arguments.

A file that asks for one where it begins, or in a helper, is named as a whole; else its tests that ask.
"""

import ast
import glob
import os
import sys

THERE = ("tensorflow", "resource", "setuptools", "safetensors", "ftbert")  # with README's test command, or with Python


def asks(node: ast.AST) -> bool:
    """Whether a package that may be missing is asked for in this statement."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("importorskip", "find_spec"):
            name = call.args[0].value if isinstance(call.args[0], ast.Constant) else ""
            if str(name).split(".")[0] not in THERE:
                return True
    return False


def arguments(path: str) -> "list[str]":
    with open(path, encoding="utf-8") as file:
        body = ast.parse(file.read(), path).body
    found = [getattr(node, "name", "") for node in body if asks(node)]
    if any(not name.startswith("test_") for name in found):
        return [path]
    return [path + "::" + name for name in found]


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.chdir(root)
    chosen = [one for path in sorted(glob.glob("tests/test_*.py")) for one in arguments(path)]
    if not chosen:
        sys.exit("Expected tests that ask for optional packages, found none.")
    print("\n".join(chosen))
