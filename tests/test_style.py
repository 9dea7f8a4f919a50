"""What no linter checks: sizes, docstrings, names of tests, skipped tests, the lock."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# One noun of the RFC or one idea per file needs no more.
MOST_LINES = 650
CODE = (".py", ".pyi", ".pyx", ".pxd", ".c", ".h")
# Names of folders that exist on somebody's machine only.
PRIVATE_FOLDERS = ("/root/", "/work/", ".pyenv/", "/tmp/venv", "/Users/")
# Whatever is not run proves nothing.
SKIPPING = {"skip", "skipif", "skipUnless", "skipIf", "importorskip", "xfail"}


@cache
def files() -> list[Path]:
    """Return the files of the project: those that git tracks, or would."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached"]
    listing = subprocess.run(
        [*command, "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listing.split("\0") if name)
    return [path for path in paths if path.is_file()]


def python_files(folder: str) -> list[Path]:
    return [p for p in files() if p.suffix == ".py" and (ROOT / folder) in p.parents]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def place(path: Path, line: int | None = None) -> str:
    return str(path.relative_to(ROOT)) + (f":{line}" if line else "")


def test_no_file_is_long() -> None:
    long = {
        place(path): lines
        for path in files()
        if path.suffix in CODE
        and (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(scope: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Yield the public functions and classes of a scope, and those in its classes."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def said_by_protocols(trees: list[ast.Module]) -> set[str]:
    """Return the names of methods that a Protocol describes, for all who have them."""
    return {
        method.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(getattr(base, "id", "") == "Protocol" for base in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }


def shares_its_text(node: ast.AST) -> bool:
    """Overloads, overrides and setters need no text beside what they belong to."""
    names = {
        getattr(decorator, "id", getattr(decorator, "attr", ""))
        for decorator in getattr(node, "decorator_list", [])
    }
    return bool(names & {"overload", "override", "setter"})


@pytest.mark.parametrize("package", ["rtunnel", "x2go_session"])
def test_every_public_name_has_a_docstring(package: str) -> None:
    trees = {path: tree_of(path) for path in python_files(package)}
    described = said_by_protocols(list(trees.values()))
    without = [
        place(path) for path, tree in trees.items() if not ast.get_docstring(tree)
    ]
    without += [
        f"{place(path, node.lineno)} {node.name}"
        for path, tree in trees.items()
        if not path.name.startswith("_") or path.name == "__init__.py"
        for node in public_definitions(tree)
        if not ast.get_docstring(node)
        and not shares_its_text(node)
        and node.name not in described
    ]
    assert without == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    named = []
    for path in files():
        if path == Path(__file__):
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if any(folder in line for folder in (*PRIVATE_FOLDERS, f"{ROOT}/")):
                named.append(f"{place(path, number)} {line.strip()}")
    assert named == []


def test_no_test_hides_another_of_the_same_name() -> None:
    hidden = []
    for path in python_files("tests"):
        for scope in ast.walk(tree_of(path)):
            if isinstance(scope, ast.Module | ast.ClassDef):
                names = Counter(
                    node.name
                    for node in scope.body
                    if isinstance(node, ast.FunctionDef | ast.ClassDef)
                )
                hidden += [
                    f"{place(path)} {name}" for name, n in names.items() if n > 1
                ]
    assert hidden == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    found = []
    for path in python_files("tests"):
        for node in ast.walk(tree_of(path)):
            name = getattr(node, "attr", getattr(node, "id", None))
            if isinstance(node, ast.Attribute | ast.Name) and name in SKIPPING:
                found.append(f"{place(path, node.lineno)} {name}")
    assert found == []


def asked_for() -> Iterator[Requirement]:
    """Yield what pyproject.toml asks for, to run and to test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for part in (
        project["project"]["dependencies"],
        project["dependency-groups"]["dev"],
        *extras.values(),
    ):
        yield from map(Requirement, part)


def test_what_is_tested_with_is_pinned_with_its_hashes() -> None:
    locked = {
        canonicalize_name(found[1]): (found[2], found[3])
        for found in re.finditer(
            r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)[^\\]*((?:\\\n +--hash=\S+ ?)+)",
            (ROOT / ".ci" / "requirements.txt").read_text(),
            re.MULTILINE,
        )
    }
    for requirement in asked_for():
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in the lock: run `make lock`"
        version, hashes = locked[name]
        assert requirement.specifier.contains(version), f"{name}: run `make lock`"
        assert "--hash=sha256:" in hashes
