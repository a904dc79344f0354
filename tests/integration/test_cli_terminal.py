"""What a person sees on a terminal while a job runs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.crash.world import DONE, ROLLED_BACK, SimWorld

CHILD = (sys.executable, "-c", "import sys; from tether.cli.main import main; sys.exit(main())")
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
ROWS, COLUMNS = 60, 140


def screen(text: str) -> list[str]:
    """Return what a terminal shows after this output: of its language, what a live display needs."""
    lines, row, column = [""], 0, 0
    for number, command, move, plain in TOKEN.findall(text):
        if plain:
            lines[row] = lines[row][:column].ljust(column) + plain + lines[row][column + len(plain) :]
            column += len(plain)
        elif move == "\r":
            column = 0
        elif move == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
    return [line.rstrip() for line in lines]


def on_terminal(sim: SimWorld, *words: str) -> tuple[int, list[str]]:
    """Run a command on a terminal of its own; return its exit code, and the screen at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    for name in ("COLUMNS", "LINES"):  # xdist gives its own to the tests
        environment.pop(name, None)
    command = [*CHILD, "--config-file", str(sim._config), "--sim", str(sim.directory), *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the last writer is gone
                break
            if not more:
                break
            said += more
    os.close(ours)
    return child.returncode, screen(said.decode())


def test_the_steps_of_an_attach_are_shown(sim: SimWorld) -> None:
    code, shown = on_terminal(sim, "attach", "vol1", "guest1", "-c", "state")
    assert code == DONE
    assert shown[0] == "attach vol1 · guest1"
    rows = [line.split() for line in shown[1:15]]
    assert [row[:3] for row in rows[-2:]] == [["✓", "complete-attachment", "done"], ["✓", "finish-mapping", "done"]]
    assert len({row[1] for row in rows}) == len(rows) == 14


def test_warnings_stay_above_the_steps(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    sim.script("host.disconnect", "fail", times=2)
    code, shown = on_terminal(sim, "attach", "vol1", "guest1", "-c", "state")
    assert code == ROLLED_BACK
    assert [line.partition(":")[0] for line in shown[:3]] == ["WARNING", "WARNING", "attach vol1 · guest1"]
    assert sum("attach vol1" in line for line in shown) == 1, "no frame is left behind"
    assert next(line.split()[:3] for line in shown if "plug-live" in line) == ["✗", "plug-live", "failed,"]
    assert not any("WARNING" in line for line in shown[3:])
