"""dm-crypt on the host: when an encrypted volume may be formatted, and how it is opened."""

from __future__ import annotations

import logging

from tether import faults
from tether.adapters.cinder.model import Encryption, Volume
from tether.adapters.host.model import Device, Header
from tether.errors import FinalError
from tether.persistence.headers import first_use, note, noted, was_formatting
from tether.sealed import Sealed
from tether.tasks.host import close_encryption
from tether.tasks.run import Run
from tether.tasks.step import Step

LOG = logging.getLogger(__name__)

#: Providers whose volumes begin with a LUKS header.
WITH_HEADER = ("luks", "luks2")


class OpenEncryption(Step):
    """Open dm-crypt over the device, after a format if it is provably new; the link then leads to the decrypted one.

    Effect: a LUKS header on a new volume, and a dm-crypt mapping named after the volume. Key: the header's UUID, and
    the mapping's name and UUID. May be repeated.
    Compensation: close it; the header stays, on a volume that held nothing.
    Uncertain: time limit, killed helper: wait until the call can no longer be carried out, look, repeat.
    Crash windows: before, inside and after the format, whose decision is durable before it begins; before, inside and
    after the open.
    """

    code = "open-encryption/1"
    gives = "opened"
    book = "host"
    repeatable = True

    def act(self, device: Device) -> Device:
        if device.kind == "network":
            return device
        encryption = self.tools.cinder.show_encryption(self.job.volume_id)
        if encryption is None or encryption.control_location != "front-end":
            return device
        passphrase = self.tools.keys.passphrase(encryption)
        prepare(self.run, encryption, passphrase)
        return self.tools.host.open_encryption(self.job.volume_id, encryption, passphrase)

    def undo(self, device: Device) -> None:
        if device.kind != "network":
            close_encryption(self.run)


def prepare(run: Run, encryption: Encryption, passphrase: Sealed[str]) -> None:
    """Make sure that the volume has a LUKS header: format it where that can destroy nothing, or is asked for.

    Raises:
        FinalError: it has none, and is not provably new; nothing was written.
        UncertainError: it cannot be read.
    """
    if noted(run.tools.ledger, run.job) == "format":
        # One that had no answer must not come after this one, when the guest may have written already.
        run.wait_quiet("host")
    if encryption.provider in WITH_HEADER and not run.tools.host.encryption_open(run.job.volume_id):
        found = run.tools.host.read_header(run.job.volume_id)
        if found is not Header.LUKS:
            _format(run, found, encryption, passphrase)
        elif run.job.params.format_luks and noted(run.tools.ledger, run.job) == "none":
            LOG.warning("--format-luks is ignored: volume %s has a LUKS header", run.job.volume_name)
    elif run.job.params.format_luks and encryption.provider not in WITH_HEADER:
        raise FinalError(
            f"volume {run.job.volume_name} has encryption provider {encryption.provider!r}, which has no LUKS header to"
            " format",
            resource=f"volume {run.job.volume_id}",
            hint="leave --format-luks out, or correct its volume type's provider",
        )
    _note(run, "open")


def _format(run: Run, found: Header, encryption: Encryption, passphrase: Sealed[str]) -> None:
    """Format what has no header: a resumed job because it had decided to, a new one if the volume is provably new."""
    if noted(run.tools.ledger, run.job) != "format":
        _check_may_format(run, found)
        _note(run, "format")
    run.tools.host.format_encryption(run.job.volume_id, encryption, passphrase)


def _check_may_format(run: Run, found: Header) -> None:
    """Raise FinalError if a format could destroy something, unless the operator has given it up."""
    if run.job.params.format_luks:
        LOG.warning("volume %s is %s and is formatted, as --format-luks says", run.job.volume_name, found)
        return
    volume: Volume = run.tools.cinder.show_volume(run.job.volume_id)
    earlier = first_use(run.tools.ledger, run.job)
    if found is Header.OTHER:
        why = "its first 16 MiB are neither LUKS nor blank"
    elif found is Header.HALF and not was_formatting(run.tools.ledger, run.job):
        why = "it has a LUKS header without a key, which no job in the ledger has left"
    elif volume.origin:
        why = f"it was made from {volume.origin}"
    elif earlier is not None:
        why = f"it was attached before, by job {earlier.id}"
    else:
        return
    raise FinalError(
        f"volume {run.job.volume_name} has no LUKS header, and is not formatted: {why}",
        resource=f"volume {run.job.volume_id}",
        hint="check that it is the right volume, with the right device (lsblk); if what it holds may be lost, attach it"
        " with --format-luks",
    )


def _note(run: Run, header: str) -> None:
    """Make durable how far this job has come with the volume's content."""
    if noted(run.tools.ledger, run.job) != header:
        faults.point(f"commit.header.{header}.before")
        note(run.tools.ledger, run.job, header)
        faults.point(f"commit.header.{header}.after")
