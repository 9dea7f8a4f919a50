"""The names of python-x2go's client, and which tests use them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent.parent
# Each on a line: a name, with its arguments if it has any.
LINES: Final = (TESTS / "data" / "x2go_client_api.txt").read_text().splitlines()
NAMES: Final = [line.partition("(")[0].partition(" =")[0] for line in LINES]
SIGNATURES: Final = {line.partition("(")[0]: line for line in LINES if "(" in line}

# Those that drive the client against the real X2Go server.
DRIVING: Final = ("test_x2go_client.py", "test_x2go_client_lists.py",
                  "test_x2go_client_hooks.py")  # fmt: skip
# What cannot be driven here, and why.
NOT_DRIVEN: Final[dict[str, str]] = {}


def driven() -> set[str]:
    """Return the names that those tests use: as attributes, or as texts."""
    used = set()
    for name in DRIVING:
        for node in ast.walk(ast.parse((TESTS / name).read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                used.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    return used & set(NAMES)
