"""The attach flow."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

from taskflow.patterns import graph_flow

from tether.persistence.params import Params
from tether.tasks import encryption, guest, host, legacy, mapping, volume
from tether.tasks.step import Step


def steps(params: Params) -> tuple[list[type[Step]], list[type[Step]]]:
    """Return the attach's steps for one case: those that may run side by side, then those in order.

    read-volume, read-server and read-connector have no edge between them. Then:

    check-attachable, create-mapping, reserve-volume, export-volume, connect-host and verify-device (host data
    path), open-encryption (encrypted, host data path), define-secret, plug-persistent, plug-live (the pivot),
    complete-attachment, finish-mapping.
    """
    modern = params.dialect == "attachments"
    on_host = params.data_path == "host"
    chain: list[type[Step]] = [
        mapping.CheckAttachable,
        mapping.CreateMapping,
        volume.ReserveVolume if modern else legacy.LegacyReserve,
        volume.ExportVolume if modern else legacy.LegacyExport,
        *([host.ConnectHost, host.VerifyDevice] if on_host else []),
        *([encryption.OpenEncryption] if on_host and params.encrypted else []),
        guest.DefineSecret,
        guest.PlugPersistent,
        guest.PlugLive,
        volume.CompleteAttachment if modern else legacy.LegacyAttach,
        mapping.FinishMapping if modern else legacy.LegacyFinishMapping,
    ]
    return [mapping.ReadVolume, mapping.ReadServer, mapping.ReadConnector], chain


def build(params: Params) -> graph_flow.Flow:
    """Return the flow for one case; its steps are named and versioned, so a stored one fits it again."""
    reads, chain = steps(params)
    given = {} if params.data_path == "host" else {"device": asdict(host.NO_DEVICE)}
    return link("attach", [step(given) for step in reads], [step(given) for step in chain])


def link(name: str, reads: list[Step], chain: list[Step]) -> graph_flow.Flow:
    """Return a graph flow: every read before the chain, the chain in its order."""
    flow = graph_flow.Flow(name)
    flow.add(*reads, *chain)
    for read in reads:
        flow.link(read, chain[0])
    for before, after in pairwise(chain):
        flow.link(before, after)
    return flow
