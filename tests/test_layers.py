"""Imports go downwards only: the layers of ARCHITECTURE.md, read from the source.

Imports are found by parsing, wherever they stand in a file: one inside a function, or
under TYPE_CHECKING, is a dependency too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtunnel

ROOT = Path(__file__).parent.parent

# From the bottom up; a module may import its own layer and those before it. A name
# ending in "." stands for all modules of that package.
LAYERS = {
    "pure": (
        "rtunnel._version",
        "rtunnel.addresses",
        "rtunnel.errors",
        "rtunnel.forwards",
        "rtunnel.halfclose",
        "rtunnel.policy",
        "rtunnel.proxy_protocol",
        "rtunnel.services",
        "rtunnel.socks",
        "rtunnel.stats",
        "rtunnel.window",
        "rtunnel.wire",
    ),
    "bytes": (
        "rtunnel._engine",
        "rtunnel._pump",
        "rtunnel._pump_entries",
        "rtunnel._pump_py",
        "rtunnel._pump_sides",
        "rtunnel._pump_types",
        "rtunnel.backend",
        "rtunnel.pump",
    ),
    "ssh": ("rtunnel.ssh.",),
    "tunnel": ("rtunnel.tunnel.",),
    "service": (
        "rtunnel.gateway.",
        "rtunnel.status.",
        "rtunnel.subsystem",
        "rtunnel.supervisor.",
        "rtunnel.toml_file",
    ),
    # The public names. Lower layers do not go through them.
    "public": ("rtunnel", "rtunnel.aio"),
    "face": ("rtunnel.bench.", "rtunnel.cli.", "rtunnel.__main__"),
}
ORDER = list(LAYERS)

# No I/O, threads or clocks in the pure layer.
IMPURE = {
    *("asyncio", "concurrent", "io", "os", "pathlib", "select", "selectors", "signal"),
    *("socket", "ssl", "subprocess", "tempfile", "threading", "time"),
}

# Whom rtunnel is compared with: paramiko, as everybody uses it.
COMPARED = {"rtunnel.bench.files", "rtunnel.bench.peers"}

# What the session layer may use of the toolkit.
PUBLIC_MODULES = {"rtunnel", "rtunnel.errors", "rtunnel.toml_file"}


def layer_of(module: str) -> str:
    for layer, names in LAYERS.items():
        for name in names:
            if module == name.rstrip(".") or (
                name.endswith(".") and module.startswith(name)
            ):
                return layer
    pytest.fail(f"{module} has no layer: give it one in {Path(__file__).name}")


def sources(package: str) -> dict[str, Path]:
    """Return the modules of a package by name, compiled ones by their stub."""
    found = {}
    for pattern in ("*.py", "*.pyi"):
        for path in (ROOT / package).rglob(pattern):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for what a file imports; `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are banned"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in modules else node.module


RTUNNEL = sources("rtunnel")


@pytest.mark.parametrize("module", sorted(RTUNNEL))
def test_imports_go_downwards_only(module: str) -> None:
    rank = ORDER.index(layer_of(module))
    upwards = [
        f"{RTUNNEL[module].name}:{line} imports {imported} ({layer_of(imported)})"
        for line, imported in imports(RTUNNEL[module], set(RTUNNEL))
        if imported.partition(".")[0] == "rtunnel"
        and ORDER.index(layer_of(imported)) > rank
    ]
    assert upwards == []


def test_only_the_ssh_layer_imports_paramiko() -> None:
    others = [
        f"{module}, line {line}"
        for module, path in RTUNNEL.items()
        for line, imported in imports(path, set(RTUNNEL))
        if imported.partition(".")[0] == "paramiko"
        and layer_of(module) not in ("ssh", "service")
        and module not in COMPARED
    ]
    assert others == []


def test_the_pure_layer_does_no_input_or_output_and_knows_no_threads() -> None:
    impure = [
        f"{module}, line {line}: {imported}"
        for module, path in RTUNNEL.items()
        for line, imported in imports(path, set(RTUNNEL))
        if layer_of(module) == "pure" and imported.partition(".")[0] in IMPURE
    ]
    assert impure == []


def test_the_session_layer_uses_public_names_only() -> None:
    private = [
        f"{module}, line {line}: {imported}"
        for module, path in sources("x2go_session").items()
        for line, imported in imports(path, set(RTUNNEL))
        if imported.partition(".")[0] in ("rtunnel", "paramiko")
        and imported not in PUBLIC_MODULES
    ]
    assert private == []


def test_every_public_name_is_there() -> None:
    missing = [name for name in rtunnel.__all__ if not hasattr(rtunnel, name)]
    assert missing == []
    assert set(rtunnel.__all__) <= set(dir(rtunnel))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rtunnel.nothing  # noqa: B018
