"""A guest's console: run commands in it, and see its disks as it sees them itself."""

from __future__ import annotations

import re
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

DISKS = re.compile(r"^DISKS (\d+) \[.*\]$")
DISK = re.compile(
    r"^DISK (?P<name>\S+) serial=(?P<serial>.*?) sectors=(?P<sectors>\d+) ro=(?P<ro>[01]) head=(?P<head>.*)$"
)
REPEAT = 0.5  # seconds of silence after which the command is sent again; the guest runs it once (see guest-init)
VIRTIO_SERIAL = 20  # bytes of a serial that virtio-blk has room for (VIRTIO_BLK_ID_BYTES)


class ConsoleError(Exception):
    """The guest did not answer in time, or its command failed."""


@dataclass(frozen=True)
class GuestDisk:
    """A disk as the guest sees it; ``head`` holds the printable ones of its first 32 bytes."""

    name: str
    serial: str
    sectors: int
    read_only: bool
    head: str


class Console:
    """One guest's two serial ports: a log that it writes, and a channel that takes commands.

    Args:
        socket_path: QEMU's socket of the command channel. It takes one client at a time; others wait.
        log_path: the file behind the first serial port.
    """

    def __init__(self, socket_path: Path, log_path: Path) -> None:
        self.socket_path, self.log_path = socket_path, log_path

    def run(self, command: str, timeout: float = 30) -> str:
        """Run one line of shell in the guest and return what it printed, stderr included.

        Raises:
            ConsoleError: no answer within ``timeout`` seconds (the command may still run), or an exit code other
                than 0.
        """
        mark = uuid.uuid4().hex[:8]
        deadline = time.monotonic() + timeout
        received = b""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(timeout)
            try:
                channel.connect(str(self.socket_path))
                line = f"\nrun {mark} {command}\n".encode()
                channel.sendall(line)
                while True:
                    if answer := self._answer(received.decode(errors="surrogateescape"), mark):
                        break
                    channel.settimeout(max(0.01, min(REPEAT, deadline - time.monotonic())))
                    try:
                        chunk = channel.recv(65536)
                    except TimeoutError:
                        if time.monotonic() >= deadline:
                            raise
                        channel.sendall(line)
                        continue
                    if not chunk:
                        raise ConsoleError(f"the guest's console closed during {command!r}")
                    received += chunk
            except OSError as error:
                raise ConsoleError(f"no answer from the guest to {command!r} within {timeout:g} s: {error}") from error
        code, output = answer
        if code != 0:
            raise ConsoleError(f"{command!r} ended with {code} in the guest: {output}")
        return output

    @staticmethod
    def _answer(text: str, mark: str) -> tuple[int, str] | None:
        """Return the exit code and the output, once they have come whole; each repeat is an answer of its own."""
        lines = [line.rstrip("\r") for line in text.split("\n")[:-1]]
        output: list[str] = []
        for line in lines:
            if not line.startswith(f"{mark} "):
                continue
            said = line.removeprefix(f"{mark} ")
            if end := re.fullmatch(r"END (\d+) (\d+)", said):
                for first in range(len(output) + 1):  # those before may be of an answer that lost its end
                    found = "\n".join(output[first:]).encode(errors="surrogateescape")
                    if len(found) == int(end[2]):
                        return int(end[1]), found.decode(errors="replace")
                output = []
            else:
                output.append(said)
        return None

    def is_up(self) -> bool:
        """Tell whether the guest has booted."""
        return any(line.startswith("GUEST-UP") for line in self._log())

    def disks(self) -> list[GuestDisk]:
        """Return the disks of the guest's last complete report, in its order.

        Raises:
            ConsoleError: it has not reported yet.
        """
        lines = self._log()
        for index in range(len(lines) - 1, -1, -1):
            if head := DISKS.match(lines[index]):
                found = [DISK.match(line) for line in lines[index + 1 : index + 1 + int(head[1])]]
                if len(found) == int(head[1]) and all(found):
                    return [
                        GuestDisk(m["name"], m["serial"], int(m["sectors"]), m["ro"] == "1", m["head"])
                        for m in found
                        if m
                    ]
        raise ConsoleError(f"the guest has not reported its disks in {self.log_path}")

    def find(self, serial: str) -> GuestDisk | None:
        """Return the disk with this serial, if the guest has it; virtio-blk cuts serials to 20 bytes."""
        for disk in self.disks():
            if disk.serial == (serial[:VIRTIO_SERIAL] if disk.name.startswith("vd") else serial):
                return disk
        return None

    def wait_for_disk(self, serial: str, timeout: float = 30) -> GuestDisk:
        """Wait until the guest reports a disk with this serial.

        Raises:
            ConsoleError: not within ``timeout`` seconds.
        """
        found = self._wait(lambda: self.find(serial), timeout)
        if found is None:
            raise ConsoleError(f"the guest reports no disk {serial} after {timeout:g} s, but {self.disks()}")
        return found

    def wait_until_gone(self, serial: str, timeout: float = 30) -> None:
        """Wait until the guest reports no disk with this serial.

        Raises:
            ConsoleError: it still does after ``timeout`` seconds.
        """
        if not self._wait(lambda: self.find(serial) is None, timeout):
            raise ConsoleError(f"the guest still reports disk {serial} after {timeout:g} s")

    @staticmethod
    def _wait(look, timeout: float):
        deadline = time.monotonic() + timeout
        while not (found := look()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _log(self) -> list[str]:
        """Return the complete lines since the guest's last start; a reset goes on in the same file."""
        try:
            text = self.log_path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return []
        lines = [line.rstrip("\r") for line in text.split("\n")[:-1]]
        starts = [index for index, line in enumerate(lines) if line.startswith("GUEST-UP")]
        return lines[starts[-1] :] if starts else []
