"""Turns a job back when an operator gives it up: whether it may still be, and how its flow is made to go backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oslo_utils import uuidutils
from taskflow import states
from taskflow.persistence import models
from taskflow.types.failure import Failure

from tether.errors import ConflictError, FinalError
from tether.flows.registry import Part
from tether.persistence.ledger import Job
from tether.persistence.logbook import JobConnection
from tether.tasks.run import Run


def may_turn_back(job: Job, parts: Sequence[Part], flows: Mapping[str, models.FlowDetail]) -> None:
    """Refuse to turn a job back that only goes forward.

    Args:
        flows: as they are stored, by name.

    Raises:
        ConflictError: the job has ended, or is past its pivot.
    """
    if job.state == "rolled-back":
        return
    if not job.open:
        raise ConflictError(
            f"job {job.id} has ended: {job.state}", resource=f"job {job.id}", hint="undo it with its opposite"
        )
    for part in parts:
        detail = flows.get(part.name)
        if not part.revertible:  # begun or not: what is before it is done
            raise ConflictError(
                f"job {job.id} is past its pivot: it only goes forward",
                resource=f"job {job.id}",
                hint=f"finish it with: tether job resume {job.id}",
            )
        if detail is None or detail.state != states.SUCCESS:
            return


def turn_back(run: Run, parts: Sequence[Part], connection: JobConnection, flows: dict[str, models.FlowDetail]) -> None:
    """Make the flow that a job is in go backward when it is run, and make that durable."""
    run.failed("", FinalError("aborted by an operator"))
    for part in parts:
        detail = flows.get(part.name)
        if detail is None:
            detail = models.FlowDetail(part.name, uuidutils.generate_uuid())
            detail.state = states.REVERTED
        elif detail.state == states.SUCCESS:
            continue
        for atom in detail:
            if atom.state == states.RUNNING:
                atom.put(states.FAILURE, Failure.from_exception(FinalError("aborted by an operator")))
            elif atom.state == states.SUCCESS:
                atom.intention = states.REVERT
        flows[part.name] = detail
        connection.update_flow_details(detail)
        connection.write({}, what=f"{part.name}.turn-back")
        return
