"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.tree import ROOT, modules, tracked_files

LINKS = ("flows", "tasks", "persistence")
LONGEST = 500
FRAGMENT = re.compile(r"(\+[a-z0-9-]+|\d+)\.([a-z]+)(\.\d+)?\.md")
# In pieces, so that this file passes its own test.
DEVELOPER_PATHS = re.compile("/" + r"(?:work|root)/[a-z.]|/" + r"home/[a-z]")
TEXT = (
    ".py",
    ".md",
    ".toml",
    ".sh",
    ".yaml",
    ".yml",
    ".cfg",
    ".conf",
    ".ini",
    ".txt",
    ".json",
    ".service",
    ".mako",
    "",
)


def _source(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _project() -> dict[str, object]:
    parsed: dict[str, object] = tomllib.loads(_source("pyproject.toml"))
    return parsed


@pytest.mark.parametrize("name", LINKS)
def test_link_at_the_top_points_to_its_room(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("tether", name)
    assert (link / "__init__.py").is_file()


def _imported(name: str) -> set[str]:
    """Return the top-level names that a module imports absolutely."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_nothing_imports_through_the_links() -> None:
    assert {name: _imported(name) & set(LINKS) for name in modules() if _imported(name) & set(LINKS)} == {}


def test_no_module_is_too_long() -> None:
    lengths = {name: len(_source(name).splitlines()) for name in modules()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name
        for name in modules()
        if not ast.get_docstring(ast.parse(_source(name))) and not (name.startswith("tests/") and not _source(name))
    ]
    assert silent == []


def test_no_tracked_file_names_a_developers_machine() -> None:
    named = {
        f"{name}:{number}"
        for name in tracked_files()
        if Path(name).suffix in TEXT and (ROOT / name).is_file() and not (ROOT / name).is_symlink()
        for number, line in enumerate(_source(name).splitlines(), 1)
        if DEVELOPER_PATHS.search(line)
    }
    assert named == set()


def test_an_adapter_does_not_know_whether_there_is_a_job() -> None:
    """Its hints are shown before there is one, once it is rolled back, and where it is blocked."""
    told = {
        f"{name}:{number}"
        for name in modules()
        if name.startswith(("tether/adapters/", "tether/sim/"))
        for number, line in enumerate(_source(name).splitlines(), 1)
        if re.search(r"resume the job|tether job|run the command again", line)
    }
    assert told == set()


def test_changelog_fragments_are_ones_that_towncrier_takes() -> None:
    kinds = {kind["directory"] for kind in _project()["tool"]["towncrier"]["type"]}  # type: ignore[index]
    names = [Path(name).name for name in tracked_files() if name.startswith("changelog.d/")]
    fragments = [name for name in names if name != "README.md"]
    wrong = [name for name in fragments if not (match := FRAGMENT.fullmatch(name)) or match[2] not in kinds]
    assert wrong == []
    version = _project()["project"]["version"]  # type: ignore[index]
    assert fragments or f"## {version} " in _source("CHANGELOG.md"), "what is new in this version is written nowhere"


def _dependencies() -> set[str]:
    project = _project()["project"]
    extras = project["optional-dependencies"].values()  # type: ignore[index]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]  # type: ignore[index]
    return {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in lines}


def test_every_dependency_has_its_row_and_no_row_is_left_over() -> None:
    rows = re.findall(r"^\| `([A-Za-z0-9_.-]+)` \|", _source("docs/dependencies.md"), re.MULTILINE)
    assert {row.lower() for row in rows} == _dependencies()
    assert len(rows) == len(set(rows))


#: What a dependency is imported as, where that is not its name with underscores.
IMPORTED_AS = {"openstacksdk": "openstack", "python-cinderclient": "cinderclient"}


def test_every_dependency_of_tether_is_imported_somewhere() -> None:
    lines = _project()["project"]["dependencies"]  # type: ignore[index]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines}
    wanted = {name: IMPORTED_AS.get(name, re.sub(r"[-.]", "_", name).lower()) for name in names}
    found = set().union(*(_imported(module) for module in modules() if module.startswith("tether/")))
    assert {name for name, imported in wanted.items() if imported not in found} == set()


def test_design_records_are_numbered_without_gaps_and_listed() -> None:
    names = sorted(Path(name).name for name in tracked_files() if name.startswith("docs/adr/0"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    index = _source("docs/adr/README.md")
    assert [name for name in names if f"({name})" not in index] == []
    for name in names:
        headings = re.findall(r"^## (.+)$", _source(f"docs/adr/{name}"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "What would change our mind"], name


def test_links_between_the_documents_lead_somewhere() -> None:
    targets = {
        (name, target)
        for name in tracked_files()
        if name.endswith(".md")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _source(name))
        if "://" not in target
    }
    assert targets
    assert {(name, target) for name, target in targets if not (ROOT / name).parent.joinpath(target).exists()} == set()


BENCHES = [f"bench/{name}" for name in ("overhead", "growth", "recovery", "memory", "report")]


@pytest.mark.parametrize("script", ["bin/docs", "bin/test", "bin/try", "bin/tether", ".ci/run", *BENCHES])
def test_scripts_stop_at_the_first_error(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    assert "set -euo pipefail" in _source(script)
