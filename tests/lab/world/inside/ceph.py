"""A Ceph cluster in the lab: one monitor, one OSD on a file, a pool for Cinder, and libvirt's secret.

Without a manager, which only counts: volumes are made, written, watched and removed without it.
https://docs.ceph.com/en/pacific/install/manual-deployment/
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from tests.lab.world.inside import services
from tests.lab.world.inside.services import CEPH_CONF, PORTALS, call, works
from tests.live.world.layout import write
from tests.live.world.processes import wait_until

NAME = "lab"
POOL = "volumes"
USER = "client.cinder"
CONF = """\
[global]
fsid = {fsid}
mon_initial_members = lab
mon_host = {address}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
auth_allow_insecure_global_id_reclaim = false
# of a file
bluestore_block_size = 8589934592
osd_memory_target = 939524096
"""
SECRET = """\
<secret ephemeral='no' private='yes'>
  <uuid>{fsid}</uuid>
  <usage type='ceph'><name>client.cinder secret</name></usage>
</secret>
"""
ADMIN = Path("/etc/ceph/ceph.client.admin.keyring")
MONITOR, OSD = Path(f"/var/lib/ceph/mon/ceph-{NAME}"), Path("/var/lib/ceph/osd/ceph-0")
#: Where Cinder's own environment finds the system's bindings.
BINDINGS = Path("/usr/lib/python3/dist-packages")
CINDER = Path("/opt/cinder/lib/python3.11/site-packages")


def start() -> None:
    """Start the cluster, and make it first where there is none; Cinder has it as the volume type ``ceph`` then."""
    start_cluster()
    services.start_cinder()
    services.fill_cinder()


def start_cluster() -> None:
    """Start the monitor and the OSD, and make what is missing of them and of the pool."""
    if not CEPH_CONF.exists():
        _make_monitor()
    call("systemctl", "start", f"ceph-mon@{NAME}")
    wait_until("Ceph's monitor answers", lambda: works("ceph", "--connect-timeout", "5", "-s"), 120)
    if not OSD.exists():
        _make_osd()
    call("systemctl", "start", "ceph-osd@0")
    wait_until(
        "Ceph's OSD is up", lambda: json.loads(call("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1, 120
    )
    if POOL not in call("ceph", "osd", "pool", "ls").split():
        call("ceph", "osd", "pool", "create", POOL)
        call("rbd", "pool", "init", POOL)
        _let_in()


def _make_monitor() -> None:
    fsid, first, key_ring = str(uuid.uuid4()), "/run/ceph-monmap", "/run/ceph-mon.keyring"
    every = [word for book in ("mon", "osd", "mgr") for word in ("--cap", book, "allow *")]
    call("ceph-authtool", "--create-keyring", str(ADMIN), "--gen-key", "-n", "client.admin", *every)
    call("ceph-authtool", "--create-keyring", key_ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    call("ceph-authtool", key_ring, "--import-keyring", str(ADMIN))
    call("monmaptool", "--create", "--clobber", "--fsid", fsid, "--add", NAME, PORTALS[0], first)
    write(CEPH_CONF, CONF.format(fsid=fsid, address=PORTALS[0]))
    CEPH_CONF.chmod(0o644)
    call("ceph-mon", "--mkfs", "-i", NAME, "--monmap", first, "--keyring", key_ring)
    call("chown", "-R", "ceph:", str(MONITOR))


def _make_osd() -> None:
    own, making = str(uuid.uuid4()), OSD.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    key = call("ceph-authtool", "--gen-print-key").strip()
    write(making / "secrets", json.dumps({"cephx_secret": key}))
    call("ceph", "osd", "new", own, "0", "-i", str(making / "secrets"))
    (making / "secrets").unlink()
    call("ceph-authtool", "--create-keyring", str(making / "keyring"), "--name", "osd.0", "--add-key", key)
    call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", own, "--osd-data", str(making), timeout=300)
    call("chown", "-R", "ceph:", str(making))
    making.rename(OSD)


def _let_in() -> None:
    """Let Cinder and libvirt in, both as one user."""
    rights = [word for book in ("mon", "mgr") for word in (book, "profile rbd")]
    key_ring = call("ceph", "auth", "get-or-create", USER, *rights, "osd", f"profile rbd pool={POOL}")
    write(Path(f"/etc/ceph/ceph.{USER}.keyring"), key_ring)
    for name in ("rados", "rbd"):
        (binding,) = BINDINGS.glob(f"{name}.cpython-311-*.so")
        shutil.copy(binding, CINDER)
    fsid, file = call("ceph", "fsid").strip(), Path("/run/ceph-secret")
    write(file, SECRET.format(fsid=fsid))
    call("virsh", "-q", "secret-define", str(file))
    write(file, call("ceph", "auth", "get-key", USER))
    call("virsh", "-q", "secret-set-value", fsid, "--file", str(file))
    file.unlink()
