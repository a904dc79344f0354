"""The one step of an all-or-nothing request for several volumes: its effect are jobs."""

from __future__ import annotations

from tether.tasks.siblings import Whole
from tether.tasks.step import Step


class AttachAll(Step):
    """Attach every volume of the request, each by a job of its own; none changes the guest before all are ready.

    Effect: the parts' jobs, which end with their volumes attached. Key: a part's id, made of this job's and the
    volume's.
    Compensation: abort the parts that are under way, detach those that are attached.
    Uncertain: a part that is blocked blocks this job; each part settles its own calls.
    Crash windows: those of the parts: each is taken up again where it stands.
    """

    code = "attach-all/1"
    book = "ledger"

    def act(self) -> bool:
        self._parts().attach()
        return True

    def look(self) -> bool | None:
        return self._parts().is_done() or None

    def undo(self) -> None:
        self._parts().undo()

    def _parts(self) -> Whole:
        if self.run.whole is None:
            raise RuntimeError("a run that is only looked at carries nothing out")
        return self.run.whole
