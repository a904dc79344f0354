"""What a user gets from the wheel and the sdist, away from the checkout."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message

from tests.packaging.conftest import Built, Installed
from tests.tree import tracked_files

LINKS = ("flows", "tasks", "persistence")


def _metadata(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(wheel.read(name))


def _package_files() -> set[str]:
    return {name for name in tracked_files() if name.startswith("tether/")}


def test_wheel_holds_the_whole_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == _package_files()
    assert "tether/py.typed" in package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_holds_the_package_without_tests_and_links(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    files = {name for name, member in members.items() if member.isfile()}
    assert _package_files() | {"LICENSE", "pyproject.toml", "setup.py", "README.md"} <= files
    assert not [name for name in members if name.split("/")[0] in {"tests", "bench", "bin", *LINKS}]
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]


def test_base_requirements_need_no_compiler_and_no_database_driver(built: Built) -> None:
    requirements = _metadata(built).get_all("Requires-Dist", [])
    base = [re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in requirements if "extra ==" not in line]
    assert "taskflow" in base  # the reading itself works
    assert not [name for name in base if name.startswith(("libvirt", "psycopg"))]
    extras = [line for line in requirements if re.search("extra == .(libvirt|postgresql)", line)]
    assert sorted(re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in extras) == ["libvirt-python", "psycopg"]


def test_installed_command_shows_its_help_without_the_extras(installed: Installed) -> None:
    done = installed.run("tether", "--help")
    assert done.returncode == 0, done.stderr
    assert "attach" in done.stdout
    assert "job resume" in done.stdout


def test_installed_command_knows_its_version(installed: Installed, built: Built) -> None:
    done = installed.run("tether", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tether", _metadata(built)["Version"]]


def test_every_command_loads_without_the_extras(installed: Installed) -> None:
    script = (
        "import importlib.metadata as m\n"
        "points = m.distribution('tether').entry_points\n"
        "names = [p.name for p in points if p.group == 'tether.commands' and p.load()]\n"
        "import tether\n"
        "print(len(names), tether.__file__)\n"
    )
    done = installed.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    count, path = done.stdout.split()
    assert int(count) > 0
    assert path.startswith(str(installed.bin.parent))
