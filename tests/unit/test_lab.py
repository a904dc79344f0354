"""What of the lab needs no lab."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.world import channel, recipe
from tests.lab.world.layout import Lab
from tests.live.world.layout import WorldError


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["echo one; echo two"], "one\ntwo\n"),
        (["printf", "%s|", "two words", "$HOME", "*", ""], "two words|$HOME|*||"),
    ],
)
def test_one_word_is_a_line_of_shell_and_several_stay_apart(words: list[str], printed: str) -> None:
    line = channel.line_of(words)
    assert subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout == printed


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "Upper", "x" * 17])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(WorldError, match="no name for a lab"):
        Lab.of_environment(name)


def test_a_folder_too_deep_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_LAB_DIR", f"/{'x' * 80}")
    with pytest.raises(WorldError, match="TETHER_LAB_DIR"):
        Lab.of_environment("lab0")


def test_the_image_has_another_name_when_its_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recipe.name()
    assert recipe.name() == first
    monkeypatch.setattr(recipe, "PACKAGES", (*recipe.PACKAGES, "hello"))
    second = recipe.name()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/motd").write_text("words")
    monkeypatch.setattr(recipe, "ROOT", tmp_path)
    assert len({first, second, recipe.name()}) == 3


def test_the_image_has_all_that_tether_asks_for() -> None:
    needs = {line.partition(">")[0].partition("[")[0] for line in recipe.tether_needs()}
    assert {"os-brick", "libvirt-python", "castellan", "taskflow"} <= needs
