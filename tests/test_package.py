"""The package as others get it: sdist, wheel built from it, a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from rtunnel import __version__

ROOT = Path(__file__).parent.parent
# Compiling, and setting up two environments, on a small machine.
SLOW_S = 600

pytestmark = pytest.mark.timeout(SLOW_S)


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Run a command with nothing of this checkout in its way; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SLOW_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    # Of a copy: the build makes files beside the sources, where other tests look.
    checkout = folder / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "rtunnel-*")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    run(sys.executable, "-m", "build", "--outdir", folder, checkout)
    return folder


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> set[str]:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel_names(dist: Path) -> set[str]:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it depends on; its bin folder."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", next(dist.glob("*.whl")))
    return folder / "bin"


def test_the_sdist_has_every_source_of_the_compiled_modules(
    sdist_names: set[str],
) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "src" / "pump").iterdir()
        if path.suffix in (".pyx", ".pxd", ".pxi", ".c", ".h")
    }
    assert {"src/pump/_engine.pyx", "src/pump/_pump.pyx"} <= sources
    assert sources - sdist_names == set()


def test_the_sdist_can_be_tested_and_read(sdist_names: set[str]) -> None:
    assert {
        *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"),
        *("Makefile", "pyproject.toml", "setup.py", ".ci/prepare", "tests/conftest.py"),
    } <= sdist_names


def test_the_sdist_has_nothing_that_was_built(sdist_names: set[str]) -> None:
    built = [name for name in sdist_names if name.endswith((".so", ".o", ".pyc"))]
    assert built == []


def test_the_wheel_has_both_compiled_modules_and_their_types(
    wheel_names: set[str],
) -> None:
    compiled = {name.partition(".")[0] for name in wheel_names if name.endswith(".so")}
    assert compiled == {"rtunnel/_engine", "rtunnel/_pump"}
    assert {
        "rtunnel/py.typed",
        "rtunnel/_engine.pyi",
        "rtunnel/_pump.pyi",
    } <= wheel_names


def test_the_wheel_has_no_sources_of_compiled_modules(wheel_names: set[str]) -> None:
    sources = [n for n in wheel_names if n.endswith((".pyx", ".pxd", ".c", ".h"))]
    assert sources == []


def test_the_wheel_has_the_two_packages_and_nothing_else(wheel_names: set[str]) -> None:
    top = {name.partition("/")[0] for name in wheel_names}
    assert top == {"rtunnel", "x2go_session", f"rtunnel-{__version__}.dist-info"}


def test_every_module_is_in_the_wheel(wheel_names: set[str]) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in ("rtunnel", "x2go_session")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules - wheel_names == set()


def test_the_wheel_has_the_page_of_the_status(wheel_names: set[str]) -> None:
    page = {f"rtunnel/status/web/page.{kind}" for kind in ("html", "css", "js")}
    assert page <= wheel_names


def test_the_wheel_runs_where_nothing_else_is_installed(
    installed: Path, tmp_path: Path
) -> None:
    version = run(installed / "rtunnel", "--version", cwd=tmp_path)
    assert version == f"rtunnel {__version__}\n"
    names = (
        "import rtunnel; print(*(getattr(rtunnel, n) and n for n in rtunnel.__all__))"
    )
    assert "connect" in run(installed / "python", "-c", names, cwd=tmp_path)


def test_the_installed_wheel_finds_its_engine(installed: Path, tmp_path: Path) -> None:
    assert "Here runs: engine" in run(installed / "rtunnel", "doctor", cwd=tmp_path)


def test_an_editable_debug_build_runs_from_its_checkout(tmp_path: Path) -> None:
    """In a copy, so that the compiled modules of this checkout stay what they are."""
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.so", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable"]
    run(*install, checkout, RTUNNEL_DEBUG="1")
    where = "import rtunnel._engine, rtunnel._pump as pump; print(pump.__file__)"
    module = Path(run(python, "-c", where, cwd=tmp_path).strip())
    assert module.parent == checkout / "rtunnel"
