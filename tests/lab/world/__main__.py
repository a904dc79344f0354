"""``bin/lab``: build, up, run, shell, cut, down.

``bin/lab up --name NAME --beside OTHER``: a second compute host, which uses the other lab's Cinder.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import subprocess
import sys
import time

from tests.lab.world import channel, engines, image
from tests.lab.world.layout import ENGINES, MOUNT_POINT, Lab, cache_lock
from tests.lab.world.stages import stage
from tests.live.world import packages
from tests.live.world.layout import CHECKOUT, WorldError, free_port

INSIDE = f"PYTHONPATH={MOUNT_POINT} PYTHONDONTWRITEBYTECODE=1 exec python3 -m tests.lab.world.inside"


def build(_lab: Lab, _words: list[str]) -> int:
    """Make the image."""
    started = time.monotonic()
    with cache_lock():
        place = image.build(stage).directory
    print(f"{place} in {time.monotonic() - started:.1f} s")
    return 0


def up(lab: Lab, words: list[str]) -> int:
    """Boot the lab, or what is missing of it."""
    started = time.monotonic()
    other = Lab.of_environment(words[1]) if words else None
    if other is not None and engines.inner_pid(other) is None:
        raise WorldError(f"lab {other.name} does not run, or is not of LAB_ENGINE=uml: nothing can be beside it")
    with lab.lock():
        if not lab.exists():
            _choose(lab)
        engine = lab.memory["engine"]
        engines.check_rights(engine)
        stage("packages of this machine", lambda: packages.install(packages.missing_packages(engines.PACKAGES[engine])))
        stage("byte code of the checkout", _compile)
        stage("kernel", lambda: engines.boot(lab))
        stage("boot", lambda: channel.open_connection(lab))
        channel.must(lab, engines.mount_command(lab))
        verb = f"up --beside {lab.name}" if other else "up"
        if other:
            engines.join(other, lab)
            channel.must(other, f"{INSIDE} meet {engines.NEIGHBOURS[0]} {engines.NEIGHBOURS[1]}")
            channel.must(lab, f"{INSIDE} meet {engines.NEIGHBOURS[1]} {engines.NEIGHBOURS[0]}")
        ready = channel.command(lab, [f"{INSIDE} {verb}"])
        code = subprocess.run(ready, check=False, stdin=subprocess.DEVNULL).returncode
    if code == 0:
        then = f"--name {lab.name} tether audit" if other else "tether attach vol1 guest1"
        print(f"up in {time.monotonic() - started:.1f} s; next: bin/lab run {then}")
    return code


def _choose(lab: Lab) -> None:
    """Choose engine, image, memory and port for a new lab, and write them down."""
    engine = os.environ.get("LAB_ENGINE") or "uml"
    if engine not in ENGINES:
        raise WorldError(f"LAB_ENGINE={engine}: it is one of {', '.join(ENGINES)}")
    memory = os.environ.get("LAB_MEMORY") or "3072"
    if not memory.isdecimal():
        raise WorldError(f"LAB_MEMORY={memory}: it is a number of MiB")
    with cache_lock():
        found = image.build(stage)
    shutil.rmtree(lab.directory, ignore_errors=True)
    lab.directory.mkdir(mode=0o700, parents=True)
    lab.remember({"engine": engine, "image": str(found.directory), "memory": int(memory), "port": free_port()})


def _compile() -> None:
    """Compile tether here: the lab sees the checkout read-only, and would compile it anew for every command."""
    if sys.version_info[:2] == (3, 11):  # the lab's
        compileall.compile_dir(CHECKOUT / "tether", quiet=2)


def run(lab: Lab, words: list[str]) -> int:
    """Run a command in the lab."""
    channel.replace_by(lab, words)
    return 1


def shell(lab: Lab, _words: list[str]) -> int:
    """Open a shell in the lab."""
    channel.replace_by(lab, ["exec bash -l"], "-t")
    return 1


def cut(lab: Lab, _words: list[str]) -> int:
    """Cut the lab's power, and keep its disks."""
    with lab.lock():
        _cut(lab)
    return 0


def _cut(lab: Lab) -> None:
    channel.close_connection(lab)
    engines.cut(lab)


def down(lab: Lab, _words: list[str]) -> int:
    """Cut the lab's power and remove its directory."""
    with lab.lock():
        if not lab.exists():
            print(f"there is no lab {lab.name} in {lab.directory.parent}")
            return 0
        stage("power cut", lambda: _cut(lab))
        shutil.rmtree(lab.directory)
    return 0


def main() -> int:
    """Do what the command line says."""
    verbs = {"build": build, "up": up, "run": run, "shell": shell, "cut": cut, "down": down}
    parser = argparse.ArgumentParser(prog="bin/lab", description=__doc__)
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="[--name NAME] COMMAND")
    given = parser.parse_args()
    name = os.environ.get("LAB_NAME") or "lab0"
    if given.words[:1] == ["--name"] and len(given.words) > 1:  # argparse would look for it in the command as well
        name, given.words = given.words[1], given.words[2:]
    beside = given.verb == "up" and given.words[:1] == ["--beside"] and len(given.words) == 2
    if given.words and given.verb != "run" and not beside:
        parser.error(f"{given.verb} takes no {given.words[0]}")
    try:
        return verbs[given.verb](Lab.of_environment(name), given.words)
    except WorldError as error:
        print(f"bin/lab {given.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
