"""The adopt flow."""

from __future__ import annotations

from taskflow.patterns import graph_flow

from tether.flows.attach import link
from tether.persistence.params import Params
from tether.tasks import adopt, mapping
from tether.tasks.step import Step


def steps(params: Params) -> tuple[list[type[Step]], list[type[Step]]]:
    """Return the adoption's steps for one case: those that may run side by side, then those in order.

    read-volume, read-server and read-connector have no edge between them. Then: check-adoptable, adopt-mapping,
    adopt-device (host data path), adopt-disk (the pivot), finish-adoption.
    """
    chain: list[type[Step]] = [
        adopt.CheckAdoptable,
        adopt.AdoptMapping,
        *([adopt.AdoptDevice] if params.data_path == "host" else []),
        adopt.AdoptDisk,
        adopt.FinishAdoption,
    ]
    return [mapping.ReadVolume, mapping.ReadServer, mapping.ReadConnector], chain


def build(params: Params) -> graph_flow.Flow:
    """Return the flow for one case."""
    reads, chain = steps(params)
    return link("adopt", [step() for step in reads], [step() for step in chain])
