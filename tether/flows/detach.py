"""The two flows of a detach: TaskFlow reverts all of a flow, and past the pivot nothing may be reverted."""

from __future__ import annotations

from taskflow.patterns import graph_flow

from tether.flows.attach import link
from tether.persistence.params import Params
from tether.tasks import guest, host, legacy, mapping, volume
from tether.tasks.step import Step


def guest_steps() -> list[type[Step]]:
    """Return the steps until the guest has let go; a failure puts everything back.

    check-detachable, begin-detaching, unplug-persistent, unplug-live (the pivot: its first request).
    """
    return [guest.CheckDetachable, volume.BeginDetaching, guest.UnplugPersistent, guest.UnplugLive]


def letting_go(params: Params) -> list[type[Step]]:
    """Return the steps by which a host lets go of what a guest no longer has.

    undefine-secret, close-encryption (encrypted, host data path), disconnect-host (host data path),
    release-attachment.
    """
    on_host = params.data_path == "host"
    return [
        guest.UndefineSecret,
        *([host.CloseEncryption] if on_host and params.encrypted else []),
        *([host.DisconnectHost] if on_host else []),
        volume.ReleaseAttachment if params.dialect == "attachments" else legacy.LegacyRelease,
    ]


def release_steps(params: Params) -> list[type[Step]]:
    """Return the steps after the guest's; they are retried, then block, and are never reverted.

    Those of :func:`letting_go`, and delete-mapping.
    """
    return [*letting_go(params), mapping.DeleteMapping]


def build_guest(_params: Params) -> graph_flow.Flow:
    """Return the flow ``detach-guest``."""
    return link("detach-guest", [], [step() for step in guest_steps()])


def build_release(params: Params) -> graph_flow.Flow:
    """Return the flow ``detach-release``."""
    return link("detach-release", [], [step() for step in release_steps(params)])
