"""A server moves between two hosts by libvirt's live migration, and tether hands its volumes over."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.lab.conftest import LabHost, bin_lab
from tests.lab.world import channel, engines
from tests.lab.world.layout import Lab
from tests.live.commands import DONE, KILLED, ROLLED_BACK
from tests.postgresql import Server
from tests.report import counted
from tether.matrix.live_judge import diff

BESIDE = "beside"
PORT = 5432
MOVE = "virsh migrate --live --persistent --undefinesource {guest} qemu+tcp://{there}/system tcp://{there}"
KINDS = ["lvm", "luks"]


@dataclass(frozen=True)
class Pair:
    """Two hosts with one Cinder and one ledger; the guest is on the first."""

    here: LabHost
    there: LabHost
    settings: dict[str, object]

    def tether(self, host: LabHost, *words: str) -> None:
        """Run a tether command, which must be done."""
        done = host.tether(*words, **self.settings)
        assert done.code == DONE, done.out + done.err

    def migrate(self, host: LabHost, part: str) -> None:
        """Do one part of the hand-over."""
        self.tether(host, "migrate", part, host.guest, "--to", BESIDE)

    def move(self) -> None:
        """Move the guest."""
        self.here.run(MOVE.format(guest=self.here.guest, there=engines.NEIGHBOURS[1]))


@contextmanager
def tunnel(lab: Lab, server: Server) -> Iterator[None]:
    """Let a lab reach the database at its own loopback."""
    ends = f"127.0.0.1:{PORT}:{server.folder}/.s.PGSQL.{PORT}"
    command = channel.command(lab, [], "-N", "-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes", "-R", ends)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def pair(lab: LabHost) -> Iterator[Pair]:
    """The lab, and another that is started beside it."""
    done = bin_lab("up", "--name", BESIDE, "--beside", lab.lab.name)
    assert done.returncode == 0, done.stdout + done.stderr
    there = LabHost(Lab(lab.lab.directory.with_name(BESIDE)))
    with Server() as server, server.database() as url, tunnel(lab.lab, server), tunnel(there.lab, server):
        name = url.partition("@/")[2].partition("?")[0]
        shared = f"postgresql+psycopg://{server.user}@127.0.0.1:{PORT}/{name}"
        endpoint = f"http://{engines.NEIGHBOURS[0]}:8776/v3"
        settings = {"default__database": shared, "cinder__endpoint_override": endpoint}
        found = Pair(lab, there, {**settings, "secrets__key_file": "/etc/tether/shared-keys"})
        found.tether(lab, "db", "upgrade")
        found.tether(lab, "key", "rotate")
        key = lab.run("cat /etc/tether/shared-keys")
        there.run(f"umask 077; cat > /etc/tether/shared-keys <<'END'\n{key}\nEND")
        yield found
    done = bin_lab("down", "--name", BESIDE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def guest_back(pair: Pair) -> Iterator[None]:
    """Have the guest where the other tests look for it, whatever has become of it."""
    yield
    guest = pair.here.guest
    pair.there.run(f"virsh destroy {guest}; virsh undefine {guest}; true")
    done = bin_lab("up")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.proves("iscsi", "migrate")
@pytest.mark.usefixtures("guest_back")
@pytest.mark.parametrize("kind", KINDS[: counted(1, 2)])
def test_a_guest_reads_and_writes_its_volume_on_the_host_that_it_moves_to(
    pair: Pair, new_volume: Callable[..., str], kind: str
) -> None:
    here, there = pair.here, pair.there
    volume_id = new_volume(kind)
    before, clean = here.books(), there.books()
    pair.tether(here, "attach", volume_id, here.guest)
    disk = here.wait_for_disk(volume_id)
    mark = uuid.uuid4().hex
    here.write(disk, mark)

    attached = here.books()
    pair.migrate(there, "prepare")
    pair.migrate(there, "abort")
    assert diff(attached, here.books()) == []
    assert diff(clean["host"], there.books()["host"]) == []

    killed = there.tether(
        "--fault", "connect-host.act.after=kill", "migrate", "prepare", here.guest, "--to", BESIDE, **pair.settings
    )
    assert killed.code == KILLED, killed.err
    pair.tether(there, "job", "resume", "--last")
    early = there.tether("migrate", "complete", here.guest, "--to", BESIDE, **pair.settings)
    assert (early.code, "not on this host" in early.err) == (ROLLED_BACK, True), early.err
    pair.move()
    pair.migrate(there, "complete")
    pair.migrate(here, "complete")

    after = here.books()
    assert diff(before["host"], after["host"]) == []
    assert there.read(disk) == mark
    again = uuid.uuid4().hex
    there.write(disk, again)
    assert there.read(disk) == again
    for host in (here, there):
        audit = host.tether("audit", "-f", "json", **pair.settings)
        assert audit.code == DONE, audit.out
    pair.tether(there, "detach", volume_id, here.guest)
    assert diff(clean["host"], there.books()["host"]) == []
