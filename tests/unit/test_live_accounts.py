"""The live world's libvirtd finds its user on a machine that never had one."""

from __future__ import annotations

from tests.live.world.libvirt_part import ACCOUNTS, with_account

PASSWD = "root:x:0:0:root:/root:/bin/bash\n"


def test_the_account_is_added_where_it_is_missing() -> None:
    changed = with_account(PASSWD, ACCOUNTS["passwd"])
    assert changed.splitlines() == [PASSWD.strip(), ACCOUNTS["passwd"]]
    assert with_account(changed, ACCOUNTS["passwd"]) == changed


def test_an_account_of_the_machines_own_stays() -> None:
    own = PASSWD + "libvirt-qemu:x:999:999::/var/lib/libvirt:/usr/sbin/nologin\n"
    assert with_account(own, ACCOUNTS["passwd"]) == own
    assert "libvirt-qemu-x" in with_account("libvirt-qemu-x:x:1:\n", ACCOUNTS["group"])
    assert with_account("libvirt-qemu-x:x:1:\n", ACCOUNTS["group"]).endswith(ACCOUNTS["group"] + "\n")
