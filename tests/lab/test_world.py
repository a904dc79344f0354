"""The lab itself: what bin/lab promises."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tests.lab.conftest import LabHost, bin_lab
from tests.live.world.layout import CHECKOUT


def test_a_command_has_its_streams_and_its_exit_code(lab: LabHost) -> None:
    command = [str(CHECKOUT / "bin/lab"), "run", "cat; echo complaint >&2; exit 7"]
    done = subprocess.run(command, check=False, input="words\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "words\n", "complaint\n")


def test_the_words_of_a_command_stay_apart(lab: LabHost) -> None:
    command = [str(CHECKOUT / "bin/lab"), "run", "printf", "%s|", "two words", "$HOME", "*"]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "two words|$HOME|*|"
    )


def test_the_lab_has_this_checkout_and_cannot_change_it(lab: LabHost) -> None:
    assert lab.run("cat /mnt/checkout/pyproject.toml") == (CHECKOUT / "pyproject.toml").read_text()
    assert lab.run("touch /mnt/checkout/touched 2>&1 || true").rstrip().endswith("Read-only file system")
    assert lab.run("cd /; /opt/tether/bin/python -c 'import tether; print(tether.__file__)'").startswith(
        "/mnt/checkout/"
    )


def test_up_once_more_leaves_what_runs_alone(lab: LabHost) -> None:
    what = "cat /proc/sys/kernel/random/boot_id /run/libvirt/qemu/guest1.pid; systemctl show -p MainPID cinder"
    before = lab.run(what)
    done = bin_lab("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lab.run(what) == before


def test_a_host_whose_power_was_cut_boots_again_with_what_was_on_its_disks(
    lab: LabHost, new_volume: Callable[..., str]
) -> None:
    volume_id = new_volume()
    before = lab.run("cat /etc/machine-id /proc/sys/kernel/random/boot_id").split()
    lab.run(f"printf mark | dd of=/dev/cinder-volumes/volume-{volume_id} bs=512 conv=sync oflag=direct; sync")
    done = bin_lab("cut")
    assert done.returncode == 0, done.stdout + done.stderr
    done = bin_lab("up")
    assert done.returncode == 0, done.stdout + done.stderr
    after = lab.run("cat /etc/machine-id /proc/sys/kernel/random/boot_id").split()
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert lab.run(f"head -c 4 /dev/cinder-volumes/volume-{volume_id}") == "mark"
    assert lab.books()["cinder"]["volumes"][volume_id]["status"] == "available"
