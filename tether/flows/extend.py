"""The three flows of an extend.

Cinder makes no volume smaller, so nothing of it is ever undone. Until Cinder has answered, the job may still end
without having changed anything; afterwards it only goes forward.
"""

from __future__ import annotations

from tether.flows.repair import chained
from tether.persistence.params import Params
from tether.tasks import extend
from tether.tasks.step import Step


def use_steps(params: Params) -> list[type[Step]]:
    """Return the steps after Cinder's: they are retried, then block.

    extend-device, resize-encryption (encrypted; both only on the host data path), resize-guest.
    """
    on_host = params.data_path == "host"
    return [
        *([extend.ExtendDevice] if on_host else []),
        *([extend.ResizeEncryption] if on_host and params.encrypted else []),
        extend.ResizeGuest,
    ]


build_check = chained("extend-check", lambda _params: [extend.CheckExtendable])
build_volume = chained("extend-volume", lambda _params: [extend.ExtendVolume])
build_use = chained("extend-use", use_steps)
