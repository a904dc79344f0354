"""The host contract on the real adapter and its helper, over a pretend host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.host import PretendHost
from tether.adapters.host.brick import BrickHost

from .host_contract import Exported, Grow, HostContract, NoFlush, Unexport


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendHost:
    return PretendHost(tmp_path, monkeypatch)


@pytest.fixture
def host(pretend: PretendHost) -> BrickHost:
    return pretend.host()


@pytest.fixture
def exported(pretend: PretendHost) -> Exported:
    return pretend.exported


@pytest.fixture
def grow(pretend: PretendHost) -> Grow:
    return pretend.grow


@pytest.fixture
def blank(pretend: PretendHost) -> Exported:
    return lambda: pretend.exported(passphrase=None)


@pytest.fixture
def unexport(pretend: PretendHost) -> Unexport:
    return pretend.unexport


@pytest.fixture
def no_flush(pretend: PretendHost) -> NoFlush:
    return lambda: pretend.flush("fail")


class TestBrickHost(HostContract):
    """The contract, over one path."""

    def test_one_path_is_all_there_is(self, host: BrickHost, exported: Exported) -> None:
        volume_id, connection = exported()
        assert (host.connect(volume_id, connection).paths, host.expected_paths(connection)) == (1, 1)


class TestBrickHostMultipath(HostContract):
    """The contract, over two paths and a multipath map."""

    @pytest.fixture
    def host(self, pretend: PretendHost) -> BrickHost:
        return pretend.host(volume_use_multipath=True)

    def test_there_are_as_many_paths_as_portals(self, host: BrickHost, exported: Exported) -> None:
        volume_id, connection = exported()
        assert (host.connect(volume_id, connection).paths, host.expected_paths(connection)) == (2, 2)

    def test_the_paths_of_other_protocols_are_not_counted(self, host: BrickHost, exported: Exported) -> None:
        _, connection = exported()
        assert host.expected_paths(replace(connection, protocol="nvmeof")) == 1
