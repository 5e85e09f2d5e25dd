"""What is built and installed holds all that runs: a template that is missing would only be missed in production."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from lbswitch import __version__

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(str(path.relative_to(ROOT / "templates")) for path in (ROOT / "templates").rglob("*.j2"))

_LOAD_ALL = """
import sys
import lbswitch
from lbswitch.balancers.templating import STOCK_TEMPLATES, Templates
for name in sys.argv[1:]:
    kind, _, file = name.partition("/")
    Templates(kind)._environment.get_template(file)
print(lbswitch.__file__)
print(STOCK_TEMPLATES)
"""


def run(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an sdist and the wheel that was built from it, without network."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"lbswitch-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sdist_names(built: Path) -> set[str]:
    with tarfile.open(built / f"lbswitch-{__version__}.tar.gz") as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def missing(expected: Iterable[str], names: set[str]) -> list[str]:
    return [name for name in expected if name not in names]


def test_there_are_templates():
    """The tests below would pass for nothing if there were none."""
    assert {name.partition("/")[0] for name in TEMPLATES} == {"nginx", "haproxy"}


def test_the_wheel_holds_what_runs(wheel_names):
    """Every template, every module, and the mark that the types are for others too."""
    modules = [str(path.relative_to(ROOT / "agent")) for path in (ROOT / "agent" / "lbswitch").rglob("*.py")]
    expected = ["lbswitch/py.typed", *(f"lbswitch/templates/{name}" for name in TEMPLATES), *modules]
    assert missing(expected, wheel_names) == []


def test_the_wheel_holds_nothing_else(wheel_names):
    """No tests, scripts or caches get into somebody's site-packages."""
    foreign = [name for name in wheel_names if not name.startswith(("lbswitch/", f"lbswitch-{__version__}.dist-info/"))]
    assert foreign == []
    assert not [name for name in wheel_names if "__pycache__" in name]


def test_the_wheel_has_the_command_and_the_license(wheel):
    """`lbswitch` is on the PATH after an installation, and the license comes with it."""
    with zipfile.ZipFile(wheel) as archive:
        info = f"lbswitch-{__version__}.dist-info"
        assert "lbswitch = lbswitch.cli.run:run" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()


def test_the_sdist_holds_the_sources(sdist_names):
    """Templates, types' mark, tests and gates: enough to build and to test again."""
    expected = [
        *(f"templates/{name}" for name in TEMPLATES),
        *("agent/lbswitch/py.typed", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
        *("tests/packaging/test_distribution.py", "scripts/test", "scripts/check", "scripts/lib/setup.sh"),
        *("examples/app/app.py", "compose/README.md"),
    ]
    assert missing(expected, sdist_names) == []
    assert not [name for name in sdist_names if "__pycache__" in name or name.startswith((".venv", ".git/"))]


def test_the_installed_wheel_finds_its_templates(wheel, tmp_path):
    """Installed somewhere else, it loads every template from there and not from this clone."""
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    said = run(sys.executable, "-c", _LOAD_ALL, *TEMPLATES, env={**os.environ, "PYTHONPATH": str(target)}).split()
    assert said == [str(target / "lbswitch" / "__init__.py"), str(target / "lbswitch" / "templates")]


def test_the_editable_installation_finds_the_templates_of_the_clone():
    """A change to a template in the clone is what the next `lbswitch` sees."""
    package, templates = run(sys.executable, "-c", _LOAD_ALL, *TEMPLATES).split()
    assert Path(package).resolve() == ROOT / "agent" / "lbswitch" / "__init__.py"
    assert Path(templates).resolve() == ROOT / "templates"


def test_the_changelog_is_that_of_the_version():
    """The newest section is that of `__version__`, dated or not yet released."""
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert headings[0].startswith(f"## [{__version__}] - ")
