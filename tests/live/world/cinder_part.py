"""The iSCSI target and Cinder."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from tests.live.world.layout import PROJECT, World, WorldError, write
from tests.live.world.processes import Daemon, wait_until

HERE = Path(__file__).parent
# name -> extra specs
TYPES = {
    "iscsi": {"volume_backend_name": "iscsi"},
    "multiattach": {"volume_backend_name": "iscsi", "multiattach": "<is> True"},
    "bound": {"volume_backend_name": "bound"},
    "qos": {"volume_backend_name": "iscsi"},
    "luks": {"volume_backend_name": "iscsi"},
    "luks2": {"volume_backend_name": "iscsi"},
}
#: Volume types that are named after their encryption provider; ``ceph-luks`` is one of another back end.
ENCRYPTED = ("luks", "luks2")
CIPHER = "aes-xts-plain64"
#: Cinder's fixed key and its id, as in its configuration here and in the lab.
FIXED_KEY = "00000000-0000-0000-0000-000000000000", "00" * 32
QOS = {"consumer": "front-end", "total_iops_sec": "500", "total_bytes_sec": "10485760"}
VOLUMES = {"vol1": "iscsi", "vol2": "iscsi", "shared1": "multiattach"}


def tgt_daemon(world: World) -> Daemon:
    """Return tgtd behind the world's own control socket and port."""
    portal = f"portal=127.0.0.1:{world.memory['iscsi_port']}"
    return Daemon(world, "tgtd", "tgtd", ["tgtd", "-f", "--iscsi", portal])


def start_tgt(world: World) -> None:
    """Start tgtd unless it runs; Cinder, which exports anew only at its own start, then starts after it."""
    part = tgt_daemon(world)
    if part.pid() is None:
        cinder_daemon(world).stop()
    part.start(lambda: _tgt_serves(world))


def _tgt_serves(world: World) -> bool:
    command = ["tgtadm", "--lld", "iscsi", "--op", "show", "--mode", "portal"]
    return subprocess.run(command, check=False, capture_output=True, env=world.environment).returncode == 0


def stop_tgt(world: World) -> None:
    """End tgtd: by SIGKILL, since it ignores SIGTERM while an initiator is logged in."""
    tgt_daemon(world).stop(signal.SIGKILL)
    for path in world.directory.glob(f"{world.tgt_socket.name}.*"):
        path.unlink()


def cinder_daemon(world: World, environment: Path | None = None) -> Daemon:
    """Return Cinder in one process; ``environment`` is the virtual environment to start it from."""
    python = (environment or Path()) / "bin/python"
    config = world.cinder / "cinder.conf"
    command = [
        "env",
        f"PYTHONPATH={HERE / 'driver'}",
        "PYTHONWARNINGS=ignore",
        str(python),
        str(HERE / "cinder_launcher.py"),
        "--config-file",
        str(config),
        "--log-file",
        "cinder.log",
    ]
    return Daemon(world, "cinder", "python", command)


def start_cinder(world: World, environment: Path) -> None:
    """Start Cinder unless it runs with the present configuration.

    Raises:
        WorldError: its database cannot be made, or it does not serve.
    """
    for path in (world.cinder / "locks", world.volumes, world.faults, world.logs):
        path.mkdir(parents=True, exist_ok=True)
    config = world.cinder / "cinder.conf"
    text = (HERE / "cinder.conf.template").read_text()
    changed = write(
        config,
        text.format(
            **world.memory,
            venv=environment,
            cinder=world.cinder,
            database=world.cinder_database,
            logs=world.logs,
            volumes=world.volumes,
            faults=world.faults,
        ),
    )
    part = cinder_daemon(world, environment)
    if changed:
        part.stop()
    if part.pid() is None:
        _make_database(world, environment, config)
    part.start(lambda: _cinder_serves(world), timeout=120)


def _make_database(world: World, environment: Path, config: Path) -> None:
    """Make the tables, in a new file that gets its name only when it is complete."""
    if world.cinder_database.exists():
        return
    new = world.cinder_database.with_suffix(".new")
    new.unlink(missing_ok=True)
    side = write_side_config(config, world, new)
    done = subprocess.run(
        [str(environment / "bin/cinder-manage"), "--config-file", str(side), "db", "sync"],
        check=False,
        capture_output=True,
        text=True,
        env=world.environment | {"PYTHONPATH": str(HERE / "driver"), "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode != 0:
        raise WorldError(f"cinder-manage db sync ended with {done.returncode}:\n{done.stderr[-2000:]}")
    new.rename(world.cinder_database)
    side.unlink()


def write_side_config(config: Path, world: World, database: Path) -> Path:
    """Write Cinder's configuration once more, for another database."""
    side = config.with_suffix(".sync")
    write(side, config.read_text().replace(str(world.cinder_database), str(database)))
    return side


class Place(Protocol):
    """Where a Cinder is."""

    @property
    def endpoint(self) -> str: ...


class Api:
    """The few calls that fill a world, by the standard library."""

    def __init__(self, world: Place) -> None:
        self.endpoint = world.endpoint

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call Cinder as the administrator and return the answer's body.

        Raises:
            WorldError: it answers with an error; OSError: it does not answer.
        """
        request = urllib.request.Request(
            f"{self.endpoint}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "X-Auth-Token": f"admin:{PROJECT}",
                "Content-Type": "application/json",
                "OpenStack-API-Version": "volume 3.60",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise WorldError(f"Cinder answers {error.code} to {method} {path}: {error.read().decode()}") from error
        return json.loads(text) if text else {}


def _cinder_serves(world: World) -> bool:
    try:
        Api(world).call("GET", "/types")
    except (OSError, http.client.HTTPException):
        return False
    return True


def make_type(api: Api, name: str, specs: dict[str, str]) -> str:
    """Make a volume type, encrypted if its name says so, and return its id."""
    body = {"volume_type": {"name": name, "extra_specs": specs, "os-volume-type-access:is_public": True}}
    made = str(api.call("POST", "/types", body)["volume_type"]["id"])
    provider = name.rpartition("-")[2]
    if provider in ENCRYPTED:
        words = {"provider": provider, "control_location": "front-end", "cipher": CIPHER, "key_size": 256}
        api.call("POST", f"/types/{made}/encryption", {"encryption": words})
    return made


def limit_type(api: Api, type_id: str, specs: dict[str, str]) -> None:
    """Give a volume type these QoS specs, with a consumer, and no other."""
    rows = {row["name"]: row for row in api.call("GET", "/qos-specs")["qos_specs"]}
    if "limited" not in rows:
        rows["limited"] = api.call("POST", "/qos-specs", {"qos_specs": {"name": "limited", **specs}})["qos_specs"]
    place = f"/qos-specs/{rows['limited']['id']}"
    api.call("GET", f"{place}/associate?vol_type_id={type_id}")
    if gone := [key for key in rows["limited"]["specs"] if key not in specs]:
        api.call("PUT", f"{place}/delete_keys", {"keys": gone})
    api.call("PUT", place, {"qos_specs": specs})


def fill_cinder(world: World) -> None:
    """Make the volume types and the volumes that are not there yet."""
    api = Api(world)
    types = {row["name"]: row["id"] for row in api.call("GET", "/types")["volume_types"]}
    for name, specs in TYPES.items():
        if name not in types:
            types[name] = make_type(api, name, specs)
    limit_type(api, types["qos"], QOS)
    have = {row["name"] for row in api.call("GET", "/volumes")["volumes"]}
    for name, kind in VOLUMES.items():
        if name not in have:
            api.call("POST", "/volumes", {"volume": {"name": name, "size": 1, "volume_type": kind}})

    def settled() -> bool:
        rows = api.call("GET", "/volumes/detail")["volumes"]
        if broken := [row["name"] for row in rows if row["name"] in VOLUMES and row["status"] == "error"]:
            raise WorldError(f"Cinder could not create {', '.join(broken)}: see {world.logs / 'cinder.log'}")
        return not any(row["status"] == "creating" for row in rows)

    wait_until("the first volumes are created", settled, 60)
