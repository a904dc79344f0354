"""What a job was asked for, as its row keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Params:
    """What was asked for, and the case that the flow is built for.

    Args:
        device: the target name asked for, or empty.
        bus: virtio, scsi or sata.
        mode: rw or ro.
        dialect: attachments or legacy.
        data_path: host or network.
        encrypted: the volume is encrypted and opened on this side.
        multiattach: the volume may be attached more than once.
        owner_mark: attachments carry the job's UUID as their owner.
        allow_nova: also on a server that Nova manages.
        size: what an extend makes the volume, in GiB.
        format_luks: the operator gives up what an encrypted volume without a LUKS header holds.
        header: how far an attach by dm-crypt has come: ``none``, ``format`` (it was decided to format the volume),
            ``open`` (it was about to be opened); empty for other jobs, and for those of releases without it.
        force: by what a detach goes on where the host cannot flush the device, since the operator gives up what was
            not written: its ``request``, or a ``resume``; empty for one that does not.
        targets: the Cinder service of whose targets the job takes this host's lock (os-brick's ``guard_connection``),
            or empty.
        whole: the all-or-nothing job that the job is a part of, or empty.
        volumes: ids of the volumes of such a job, with blanks between them; empty for other jobs.
        limits: what a disk is to be limited to, as :func:`limits_text` has it; empty for none.
    """

    device: str = ""
    bus: str = "virtio"
    mode: str = "rw"
    dialect: str = "attachments"
    data_path: str = "host"
    encrypted: bool = False
    multiattach: bool = False
    owner_mark: bool = True
    allow_nova: bool = False
    size: int = 0
    format_luks: bool = False
    header: str = ""
    force: str = ""
    targets: str = ""
    whole: str = ""
    volumes: str = ""
    limits: str = ""


def limits_text(limits: Mapping[str, int]) -> str:
    """Return limits by libvirt's names as ``NAME=VALUE``, with blanks between them."""
    return " ".join(f"{name}={value}" for name, value in limits.items() if value)


def limits_from(text: str) -> dict[str, int]:
    """Return what :func:`limits_text` wrote."""
    return {name: int(value) for name, _, value in (part.partition("=") for part in text.split())}
