"""The flows of repairs: each a table of steps, as the others."""

from __future__ import annotations

from collections.abc import Callable

from taskflow.patterns import graph_flow

from tether.flows.attach import link
from tether.flows.detach import release_steps
from tether.persistence.params import Params
from tether.tasks import half, mapping, release, repair, volume
from tether.tasks.step import Step

Steps = list[type[Step]]


def connect_steps(params: Params) -> Steps:
    """Return the steps that connect a disk anew, or take up how it is reached by now.

    check-reachable, claim-mapping; reconnect-host, verify-reconnected, reopen-encryption (encrypted) on the host data
    path.
    """
    on_host: Steps = [
        repair.ReconnectHost,
        repair.VerifyReconnected,
        *([repair.ReopenEncryption] if params.encrypted else []),
    ]
    return [repair.CheckReachable, repair.ClaimMapping, *(on_host if params.data_path == "host" else [])]


def renew_steps(params: Params) -> Steps:
    """Return the steps after it; they are retried, then block, and are never reverted.

    renew-secret (network data path), finish-repair.
    """
    return [*([repair.RenewSecret] if params.data_path == "network" else []), repair.FinishRepair]


def reserve_steps(_params: Params) -> Steps:
    """Return the steps that reserve what a server has and Cinder has lost.

    check-lost, claim-mapping, reserve-volume, hold-attachment (the pivot).
    """
    return [repair.CheckLost, repair.ClaimMapping, volume.ReserveVolume, repair.HoldAttachment]


def attach_steps(params: Params) -> Steps:
    """Return the steps after it; they are retried, then block, and are never reverted.

    read-attachment, reexport-volume, verify-same, complete-attachment, renew-secret (network data path), finish-repair.
    """
    return [
        repair.ReexportVolume,
        repair.VerifySame,
        volume.CompleteAttachment,
        *renew_steps(params),
    ]


def define_steps(_params: Params) -> Steps:
    """Return the steps that put the missing half of a disk back: check-half, plug-half."""
    return [half.CheckHalf, half.PlugHalf]


def complete_steps(_params: Params) -> Steps:
    """Return the steps that bring a volume's status to in-use, after check-status: read-attachment, settle-status."""
    return [repair.ReadAttachment, repair.SettleStatus]


def clean_steps(_params: Params) -> Steps:
    """Return the steps that free what no mapping has and nothing uses, after check-stray.

    clear-mark, clear-secret, clear-host, clear-rows.
    """
    return [release.ClearMark, release.ClearSecret, release.ClearHost, release.ClearRows]


def build_connect(params: Params) -> graph_flow.Flow:
    """Return the flow ``repair-connect``."""
    return _after("repair-connect", [mapping.ReadVolume, mapping.ReadConnector], connect_steps(params))


def build_renew(params: Params) -> graph_flow.Flow:
    """Return the flow ``repair-renew``."""
    return _after("repair-renew", [mapping.ReadConnector] if params.data_path == "network" else [], renew_steps(params))


def build_reserve(params: Params) -> graph_flow.Flow:
    """Return the flow ``repair-reserve``."""
    return _after("repair-reserve", [mapping.ReadVolume], reserve_steps(params))


def build_attach(params: Params) -> graph_flow.Flow:
    """Return the flow ``repair-attach``."""
    return _after("repair-attach", [mapping.ReadConnector, repair.ReadAttachment], attach_steps(params))


def _after(name: str, reads: Steps, chain: Steps) -> graph_flow.Flow:
    return link(name, [step() for step in reads], [step() for step in chain])


def chained(name: str, steps: Callable[[Params], Steps]) -> Callable[[Params], graph_flow.Flow]:
    """Return the builder of a flow without reads of its own."""
    return lambda params: link(name, [], [step() for step in steps(params)])


build_define = chained("repair-define", define_steps)
build_status = chained("repair-status", lambda _params: [repair.CheckStatus])
build_complete = chained("repair-complete", complete_steps)
build_unused = chained("repair-unused", lambda _params: [release.CheckUnused])
build_release = chained("repair-release", lambda params: [release.ClearMark, *release_steps(params)])
build_stray = chained("repair-stray", lambda _params: [release.CheckStray])
build_clean = chained("repair-clean", clean_steps)
