"""A stand-in for os_brick.initiator.connector: logs each call, and fails as it is told."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from os_brick import exception
from os_brick.privileged import rootwrap

ROOT = pathlib.Path(os.environ["FAKE_BRICK_DIR"])


def log(*words):
    with (ROOT / "calls").open("a") as handle:
        print(*words, file=handle)


with (ROOT / "loads").open("a") as handle:
    print(os.getpid(), file=handle)


def behaviour(call):
    path = ROOT / "behave.json"
    book = json.loads(path.read_text()) if path.exists() else {}
    todo = book.get(call, [])
    if not todo:
        return ""
    book[call] = todo[1:]
    path.write_text(json.dumps(book))
    return todo[0]


def misbehave(what, data):
    """Go wrong as told; the words of a failure carry the password, as iscsiadm's command line would."""
    if what in COMMANDS:
        COMMANDS[what]()
    if what == "gate":
        log("pids", os.getpid())
        while not (ROOT / "open").exists():
            time.sleep(0.02)
    if what == "fail":
        raise exception.VolumeDeviceNotFound(f"Volume device not found at {data.get('auth_password')}.")
    if what == "crash":
        raise KeyError(data.get("auth_password"))
    if what == "noise":
        print("on standard output", data.get("auth_password"), flush=True)
        print("on standard error", data.get("auth_password"), file=sys.stderr, flush=True)
    if what == "long":
        print("y" * 3_000_000, file=sys.stderr, flush=True)


def hang():
    child = subprocess.Popen(["sleep", "600"])
    log("pids", os.getpid(), child.pid)
    child.wait()


def be_deaf():
    """Hang, with no ear for a signal that may be ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def die():
    child = subprocess.Popen(["sleep", "600"])
    log("pids", os.getpid(), child.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def hang_with_family():
    script = 'sleep 600 & echo "pids $0 $$ $!" >> "$FAKE_BRICK_DIR/calls"; wait'
    subprocess.run(["sh", "-c", script, str(os.getpid())], check=True)


def leave_family():
    child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
    log("pids", os.getpid(), child.pid, child.stdout.readline().decode().strip())


COMMANDS = {"hang": hang, "deaf": be_deaf, "die": die, "family": hang_with_family, "leave": leave_family}


def get_connector_properties(root_helper, my_ip, multipath, enforce_multipath, *, host=None):
    log("properties", my_ip, multipath, enforce_multipath)
    misbehave(behaviour("properties"), {})
    initiator = (ROOT / "etc/iscsi/initiatorname.iscsi").read_text().strip().removeprefix("InitiatorName=")
    return {"host": host, "ip": my_ip, "initiator": initiator, "multipath": multipath, "platform": "x86_64"}


class InitiatorConnector:
    @staticmethod
    def factory(protocol, root_helper, use_multipath=False, device_scan_attempts=3, *, execute=None, transport=""):
        log("factory", protocol, use_multipath, device_scan_attempts)
        return Connector(use_multipath, execute or rootwrap.execute)


class Connector:
    def __init__(self, multipath, execute):
        self.multipath = multipath
        self.execute = execute

    def connect_volume(self, data):
        what = behaviour("connect")
        log("connect", data["target_iqn"], "encrypted", data["encrypted"])
        if what != "fail-after":
            misbehave(what, data)
        export = ROOT / "exports" / data["target_iqn"]
        if not export.exists():
            raise exception.VolumeDeviceNotFound("Volume device not found at .")
        facts = json.loads(export.read_text())
        portals = data["target_portals"] if self.multipath else [data["target_portal"]]
        paths = [self._log_in(data, portal, number, facts) for number, portal in enumerate(portals)]
        if what == "fail-after":
            misbehave("fail", data)
        if len(paths) == 1:
            return {"type": "block", "path": str(ROOT / "dev" / paths[0])}
        block = make_map(f"mpath-{facts['wwid']}", f"mpath-3{facts['wwid'].removeprefix('naa.')}", paths)
        return {"type": "block", "path": os.fsencode(ROOT / "dev" / block), "multipath_id": facts["wwid"]}

    def _log_in(self, data, portal, number, facts):
        session = ROOT / "sys/class/iscsi_session" / f"session-{data['target_iqn'][-36:]}-{number}"
        lun = session / f"device/target1:0:0/1:0:0:{data['target_lun']}/block"
        if lun.is_dir():
            return next(lun.iterdir()).name
        (ROOT / "etc/iscsi/nodes" / data["target_iqn"] / portal).mkdir(parents=True, exist_ok=True)
        disk = make_block("sd", facts["size"])
        (ROOT / "sys/class/block" / disk / "device").mkdir()
        if facts.get("passphrase"):
            header = {"uuid": "a-uuid-of-another-tool", "key": facts["passphrase"]}
            (ROOT / "headers" / disk).write_text(json.dumps(header))
        wwid = facts.get("wwids", [facts["wwid"]] * 2)[number]
        (ROOT / "sys/class/block" / disk / "device/wwid").write_text(wwid + "\n")
        (lun / disk).mkdir(parents=True)
        (session / "targetname").write_text(data["target_iqn"] + "\n")
        return disk

    def extend_volume(self, data):
        what = behaviour("extend")
        log("extend", data["target_iqn"])
        misbehave(what, data)
        size = json.loads((ROOT / "exports" / data["target_iqn"]).read_text())["size"]
        for session in (ROOT / "sys/class/iscsi_session").glob(f"session-{data['target_iqn'][-36:]}-*"):
            for disk in session.glob("device/*/*/block/*"):
                resize(disk.name, size)
                for holder in (ROOT / "sys/class/block" / disk.name / "holders").iterdir():
                    if (ROOT / "sys/class/block" / holder.name / "dm/uuid").read_text().startswith("mpath-"):
                        resize(holder.name, size)
        return size

    def disconnect_volume(self, data, device_info, force=False, ignore_errors=False):
        what = behaviour("disconnect")
        log("disconnect", data["target_iqn"], device_info, *(["force"] if force else []))
        misbehave(what, data)
        if what == "nothing":
            return
        sessions = list((ROOT / "sys/class/iscsi_session").glob(f"session-{data['target_iqn'][-36:]}-*"))
        disks = [disk.name for session in sessions for disk in session.glob("device/*/*/block/*")]
        errors = exception.ExceptionChainer()
        for words in flushes(disks):
            try:
                self.execute(*words, run_as_root=True, attempts=3, timeout=300, interval=10, root_helper=None)
            except exception.ProcessExecutionError as error:
                if not force:
                    raise
                errors.add_exception(type(error), error, error.__traceback__)
        for disk in disks:
            for holder in (ROOT / "sys/class/block" / disk / "holders").iterdir():
                remove_block(holder.name)
            remove_block(disk)
        for session in sessions:
            remove(session)
        remove(ROOT / "etc/iscsi/nodes" / data["target_iqn"])
        if errors._exceptions and not ignore_errors:
            raise errors


def flushes(disks):
    """Yield the commands that flush what is over these disks, or the disks themselves."""
    blocks = ROOT / "sys/class/block"
    maps = {holder.name for disk in disks for holder in (blocks / disk / "holders").iterdir()}
    for over in maps:
        yield "multipath", "-f", (blocks / over / "dm/name").read_text().strip()
    if not maps:
        yield from (("blockdev", "--flushbufs", str(ROOT / "dev" / disk)) for disk in disks)


def make_block(prefix, size):
    number = 0
    blocks = ROOT / "sys/class/block"
    while True:
        name = f"sd{chr(ord('a') + number)}" if prefix == "sd" else f"{prefix}{number}"
        if not (blocks / name).exists():
            break
        number += 1
    for folder in ("holders", "slaves"):
        (blocks / name / folder).mkdir(parents=True)
    (blocks / name / "size").write_text(f"{size // 512}\n")
    with (ROOT / "dev" / name).open("w") as device:
        device.truncate(16 * 1024 * 1024)
    return name


def resize(block, size):
    (ROOT / "sys/class/block" / block / "size").write_text(f"{size // 512}\n")


def make_map(name, uuid, slaves):
    blocks = ROOT / "sys/class/block"
    for known in blocks.glob("dm-*"):
        if (known / "dm/name").read_text().strip() == name:
            return known.name
    size = int((blocks / slaves[0] / "size").read_text()) * 512
    block = make_block("dm-", size)
    (blocks / block / "dm").mkdir()
    (blocks / block / "dm/name").write_text(name + "\n")
    (blocks / block / "dm/uuid").write_text(uuid + "\n")
    if (ROOT / "headers" / slaves[0]).exists():
        (ROOT / "headers" / block).write_text((ROOT / "headers" / slaves[0]).read_text())
    for slave in slaves:
        (blocks / block / "slaves" / slave).write_text("")
        (blocks / slave / "holders" / block).write_text("")
    return block


def remove_block(name):
    for slave in (ROOT / "sys/class/block" / name / "slaves").glob("*"):
        (ROOT / "sys/class/block" / slave.name / "holders" / name).unlink(missing_ok=True)
    remove(ROOT / "sys/class/block" / name)
    (ROOT / "dev" / name).unlink(missing_ok=True)
    (ROOT / "headers" / name).unlink(missing_ok=True)


def remove(path):
    subprocess.run(["rm", "-rf", str(path)], check=True)
