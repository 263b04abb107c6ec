"""JSON objects in files, as model folders hold them."""

import json
from typing import Any, Dict

from ftbert.errors import CheckpointError

__all__ = ["read_json_object"]


def read_json_object(path: str) -> Dict[str, Any]:
    """The object in a file.

    Raises:
        CheckpointError: absent, unreadable, no JSON, or no object.
    """
    try:
        with open(path, "r", encoding="utf-8-sig") as file:
            values = json.load(file)
    except (OSError, ValueError) as error:
        raise CheckpointError("%s: expected readable JSON: %s" % (path, error)) from error
    if not isinstance(values, dict):
        raise CheckpointError("%s: expected a JSON object, got %s." % (path, type(values).__name__))
    return values
