"""Values as Milvus expressions write them; every expression gets its values from here."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["literal"]

#: The only escapes that a server and Milvus Lite both read. They take other characters, control
#: characters too, as they are.
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def literal(value: str | int | float | bool | Sequence[str | int | float | bool]) -> str:
    """A text, a number, a boolean, or a list of texts or integers."""
    if isinstance(value, str):
        return f'"{value.translate(ESCAPES)}"'
    if isinstance(value, int | float):
        return json.dumps(value)
    return f"[{', '.join(map(literal, value))}]"
