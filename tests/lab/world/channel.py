"""Commands in a lab: one ssh connection, which every command shares."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence

from tests.lab.world import engines
from tests.lab.world.layout import Lab
from tests.live.world.layout import WorldError, write

BOOT_LIMIT = 300  # seconds
CONFIG = """\
Host lab
  HostName {address}
  Port {port}
  User root
  IdentityFile {key}
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  # an emulated machine answers late
  ConnectTimeout 30
  # settings of tether, and not the variables of somebody's cloud
  SendEnv OS_*__*
  ControlMaster auto
  ControlPath {socket}
  ControlPersist yes
"""


def line_of(words: Sequence[str]) -> str:
    """Return the shell line of a command: one word is a line already, several are a command and its arguments."""
    return words[0] if len(words) == 1 else shlex.join(words)


def command(lab: Lab, words: Sequence[str], *options: str) -> list[str]:
    """Return the command on this machine that runs a command in the lab."""
    if engines.daemon(lab).pid() is None:
        raise WorldError(f"lab {lab.name} is not running: run bin/lab up")
    tail = ["--", line_of(words)] if words else []
    return [*engines.entrance(lab), "ssh", "-F", str(lab.ssh_config), *options, "lab", *tail]


def run(lab: Lab, *words: str, timeout: float = 600, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in the lab to its end, whatever its exit code.

    Args:
        text: its standard input.

    Raises:
        WorldError: it does not end within ``timeout`` seconds.
    """
    try:
        return subprocess.run(
            command(lab, words),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            **({"stdin": subprocess.DEVNULL} if text is None else {"input": text}),
        )
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"{shlex.join(words)} does not end in lab {lab.name} within {timeout:g} s") from error


def must(lab: Lab, *words: str, timeout: float = 600, text: str | None = None) -> str:
    """Run a command in the lab and return what it prints.

    Raises:
        WorldError: it failed.
    """
    done = run(lab, *words, timeout=timeout, text=text)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise WorldError(f"in lab {lab.name}, {line_of(words)[:200]} ended with {done.returncode}:\n{end}")
    return done.stdout


def replace_by(lab: Lab, words: Sequence[str], *options: str) -> None:
    """Become a command in the lab: its input, output and exit code are this process's."""
    full = command(lab, words or ["bash -s"], *options)
    os.execvp(full[0], full)


def open_connection(lab: Lab) -> None:
    """Wait until the lab has booted, and open the connection.

    Raises:
        WorldError: it ended, or does not answer in time; the end of its console is in the message.
    """
    address, port = engines.address(lab)
    text = CONFIG.format(address=address, port=port, key=lab.image.key, socket=lab.control_socket)
    write(lab.ssh_config, text)
    deadline = time.monotonic() + BOOT_LIMIT
    while not _answers(lab):
        if engines.daemon(lab).pid() is None:
            raise WorldError(f"lab {lab.name} ended while it booted. Its console ends:\n{_tail(lab)}")
        if time.monotonic() > deadline:
            raise WorldError(f"lab {lab.name} does not answer within {BOOT_LIMIT} s. Its console ends:\n{_tail(lab)}")
        time.sleep(0.2)


def _answers(lab: Lab) -> bool:
    try:
        done = subprocess.run(
            command(lab, ["true"]),
            check=False,
            stdin=subprocess.DEVNULL,
            # The connection stays behind, and must not hold a pipe of the caller's open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=40,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def close_connection(lab: Lab) -> None:
    """End the connection, if there is one."""
    if lab.control_socket.exists():
        exit_command = ["ssh", "-F", str(lab.ssh_config), "-O", "exit", "lab"]
        subprocess.run(exit_command, check=False, capture_output=True, timeout=10)
        lab.control_socket.unlink(missing_ok=True)


def _tail(lab: Lab) -> str:
    path = engines.daemon(lab).log
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else ""
