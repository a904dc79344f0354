"""Cinder's contract: the limits of a volume's type. See ``cinder_contract``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract.cinder_words import CONNECTOR, NewVolume
from tether.adapters.cinder.model import Cinder

PLAIN = {"total_iops_sec": "500", "total_bytes_sec": "10485760"}
BESIDE = {"read_iops_sec": "70", "minIOPS": "5"}
#: QoS specs -> the limits of a volume of 1 GiB.
GIVEN: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "as they are": (PLAIN, PLAIN),
    "a backend's own beside them": (BESIDE, BESIDE),
    "per GiB": ({"read_iops_sec_per_gb": "30"}, {"read_iops_sec": "30"}),
    "per GiB, with a least": (
        {"read_iops_sec_per_gb": "30", "read_iops_sec_per_gb_min": "100"},
        {"read_iops_sec": "100"},
    ),
    "per GiB, with a most": (
        {"total_bytes_sec_per_gb": "2000000", "total_bytes_sec_max": "500000"},
        {"total_bytes_sec": "500000"},
    ),
}


class QosContract:
    @pytest.mark.parametrize(("specs", "limits"), GIVEN.values(), ids=GIVEN)
    def test_the_limits_are_those_of_a_connection_made_now(
        self,
        cinder: Cinder,
        new_volume: NewVolume,
        limit_type: Callable[[str, dict[str, str]], None],
        specs: dict[str, str],
        limits: dict[str, str],
    ) -> None:
        volume = new_volume(limited=True)
        limit_type(volume, specs)
        found = cinder.show_qos(volume)
        assert found == limits
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        assert cinder.update_attachment(attachment, CONNECTOR).qos_specs == found

    def test_a_type_without_specs_has_none(self, cinder: Cinder, new_volume: NewVolume) -> None:
        assert cinder.show_qos(new_volume()) == {}
