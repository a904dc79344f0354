"""docs/exit-codes.md says what the tree of errors does."""

from __future__ import annotations

import re

import pytest

from tests.tree import ROOT
from tether import errors


def _tree(base: type[errors.TetherError]) -> list[type[errors.TetherError]]:
    return [base, *(member for child in base.__subclasses__() for member in _tree(child))]


def _documented() -> dict[str, int]:
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE)
    return {name: int(code) for code, text in rows for name in re.findall(r"`([A-Z]\w+)`", text)}


@pytest.mark.parametrize("error", [each for each in _tree(errors.TetherError) if each.__module__ == "tether.errors"])
def test_each_error_is_documented_with_its_code(error: type[errors.TetherError]) -> None:
    assert _documented()[error.__name__] == error.exit_code
