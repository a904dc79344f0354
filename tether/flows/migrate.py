"""The flows of a hand-over: a host gets a second connection, takes the server over, or lets its own connection go."""

from __future__ import annotations

from dataclasses import asdict

from taskflow.patterns import graph_flow

from tether.flows.attach import link
from tether.flows.detach import letting_go
from tether.flows.repair import chained
from tether.persistence.params import Params
from tether.tasks import encryption, guest, host, mapping, migrate, volume
from tether.tasks.step import Step


def prepare_steps(params: Params) -> list[type[Step]]:
    """Return the steps by which the destination gets ready, after read-volume and read-connector.

    check-movable, create-handover, second-attachment, read-export, connect-host and verify-device (host data path),
    open-encryption (encrypted, host data path), define-secret (the pivot), complete-attachment, finish-handover.
    """
    on_host = params.data_path == "host"
    return [
        migrate.CheckMovable,
        migrate.CreateHandover,
        migrate.SecondAttachment,
        migrate.ReadExport,
        *([host.ConnectHost, host.VerifyDevice] if on_host else []),
        *([encryption.OpenEncryption] if on_host and params.encrypted else []),
        guest.DefineSecret,
        volume.CompleteAttachment,
        migrate.FinishHandover,
    ]


def release_steps(params: Params) -> list[type[Step]]:
    """Return the steps by which a host lets its end go; they are retried, then block, and are never reverted.

    Those of a detach (:func:`tether.flows.detach.letting_go`), and forget-handover.
    """
    return [*letting_go(params), migrate.ForgetHandover]


def build_prepare(params: Params) -> graph_flow.Flow:
    """Return the flow ``migrate-prepare``."""
    given = {} if params.data_path == "host" else {"device": asdict(host.NO_DEVICE)}
    reads = [mapping.ReadVolume(given), mapping.ReadConnector(given)]
    return link("migrate-prepare", reads, [step(given) for step in prepare_steps(params)])


build_arrived = chained("migrate-arrived", lambda _params: [migrate.CheckArrived])
build_take = chained("migrate-take", lambda _params: [migrate.TakeMapping])
build_left = chained("migrate-left", lambda _params: [migrate.CheckLeft])
build_release = chained("migrate-release", release_steps)
