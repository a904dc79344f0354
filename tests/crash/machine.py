"""The rules of the state machine: attaches, detaches, resumes, aborts, faults, and what others do meanwhile."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.crash.model import DIALECTS, HELD, PAIRS, PLAIN, Model
from tests.crash.pairs import SERVERS, VOLUMES, Pair
from tests.crash.troubles import NONE, Script, troubles
from tests.crash.world import BLOCKED, DONE


class Machine(Model):
    """What may happen next; after each step the model judges the five books."""

    # -- commands --------------------------------------------------------------------------------------------

    @rule(data=st.data(), pair=st.sampled_from(PAIRS), dialect=DIALECTS, path=st.sampled_from(["host", "network"]))
    def attach(self, data: Any, pair: Pair, dialect: str, path: str) -> None:
        dialect = "attachments" if pair[0] == "shared1" else dialect  # the legacy one knows no multiattach
        trouble = data.draw(troubles("attach", dialect), "trouble")
        self.command("attach", pair, trouble, dialect, path)

    @rule(data=st.data(), pair=st.runner().flatmap(lambda self: st.sampled_from(self.attached() or list(PAIRS))))
    def detach(self, data: Any, pair: Pair) -> None:
        dialect = self.facts.mappings[pair]["dialect"] if pair in self.facts.mappings else "attachments"
        self.command("detach", pair, data.draw(troubles("detach", dialect), "trouble"), dialect)

    @precondition(lambda self: self.facts.open_jobs())
    @rule(data=st.data(), job=st.runner().flatmap(lambda self: st.sampled_from(self.open_pairs())))
    def resume(self, data: Any, job: Pair) -> None:
        row = self.job_of(job)
        kinds = [troubles(row["kind"], self.dialect_of(row)), troubles("abort", self.dialect_of(row))]
        self.take_up("resume", job, data.draw(st.one_of(st.just(NONE), st.just(NONE), *kinds), "trouble"))

    @precondition(lambda self: self.facts.open_jobs())
    @rule(data=st.data(), job=st.runner().flatmap(lambda self: st.sampled_from(self.open_pairs())))
    def abort(self, data: Any, job: Pair) -> None:
        trouble = data.draw(troubles("abort", self.dialect_of(self.job_of(job))), "trouble")
        self.take_up("abort", job, trouble)

    @precondition(lambda self: self.facts.open_jobs())
    @rule(
        job=st.runner().flatmap(lambda self: st.sampled_from(self.open_pairs())),
        end=st.sampled_from(["attached", "clean"]),
    )
    def settle(self, job: Pair, end: str) -> None:
        """An operator's word ends a job only if no book contradicts it."""
        row = self.job_of(job)
        ended = self.run("job", "settle", row["id"], "--as", end, "--reason", "by the machine")
        self.check(ended.code in {DONE, BLOCKED}, f"settle ended with {ended.code}: {ended.err}")
        if ended.code == DONE:
            self.is_[job] = end
            self.marred[job] -= {"live", "persistent"} if end == "attached" else {"row", "live", "persistent"}
            self.troubled.discard(job[0])
        self.judge()

    @precondition(lambda self: not self.doubled and self.free_pairs())
    @rule(
        pair=st.runner().flatmap(lambda self: st.sampled_from(self.free_pairs())),
        joins=st.booleans(),
        other=st.sampled_from(["guest1", "guest2"]),
    )
    def two_at_once(self, pair: Pair, joins: bool, other: str) -> None:
        """The same attach twice is one job; one to another server is refused while it runs."""
        volume, server = pair
        before = len(self.facts.jobs)
        self.doubled = True  # it takes its time
        self.script(Script("cinder.update_attachment", "slow"), seconds=1.0)
        first = self.start("attach", volume, server, "--dialect", "attachments")
        self.wait_for_job(volume)
        if joins:
            second = self.run("attach", volume, server)
        else:
            second = self.run(
                "attach", volume, server if other not in SERVERS or server == other else other, "--no-wait"
            )
        ended = first.wait()
        self.counts["two at once"] += 1
        self.forgive()
        self.check(ended.code == DONE, f"the first of two attaches ended with {ended.code}: {ended.err}")
        self.check(second.code == (DONE if joins else HELD), f"the second one ended with {second.code}: {second.err}")
        self.is_[pair] = "attached"
        self.judge()
        self.check(len(self.facts.jobs) == before + 1, "two jobs for one request")

    # -- what others do --------------------------------------------------------------------------------------

    @precondition(lambda self: self.rowed())
    @rule(
        pair=st.runner().flatmap(lambda self: st.sampled_from(self.rowed())), how=st.sampled_from(["delete", "reset"])
    )
    def an_administrator(self, pair: Pair, how: str) -> None:
        """Somebody deletes the attachment in Cinder, or resets the volume's state."""
        if how == "reset" and pair[0] in PLAIN:
            self.outsider.reset(pair[0])
            self.exported.add(pair[0])
        else:
            self.outsider.delete_attachment(self.rows_of(pair)[0]["id"])
        self.mar(pair, "row")

    @precondition(lambda self: self.held_disks())
    @rule(held=st.runner().flatmap(lambda self: st.sampled_from(self.held_disks())))
    def virsh_detach_disk(self, held: tuple[str, str, str]) -> None:
        volume, server, scope = held
        self.outsider.detach_disk(server, volume, scope)
        self.mar((volume, server), scope)

    @rule(
        server=st.runner().flatmap(lambda self: st.sampled_from(self.busy_servers())),
        what=st.sampled_from(["stop", "pause", "save", "reboot"]),
    )
    def the_guest(self, server: str, what: str) -> None:
        """Its power changes; one that is off is started, one that is paused runs on."""
        power = self.facts.power[server]
        if power == "paused" and what != "stop":
            self.unpause(server)
        elif power == "shutoff":
            if not self.outsider.can_start(self.facts, server):
                return
            self.outsider.start(server)
        elif what == "pause":
            self.outsider.pause(server)
        elif what == "save":
            self.outsider.save(server)
        elif what == "reboot":
            self.mar_pending(server, {"paused", "ignored"})
            self.outsider.reset_guest(server)
        else:
            self.outsider.stop(server)
        self.foreign(server)

    @rule(
        what=st.sampled_from(["come", "come", "plug"]),
        server=st.sampled_from(["guest1", "guest2"]),
        name=st.sampled_from(["vdb", "vdc"]),
    )
    def a_stranger(self, what: str, server: str, name: str) -> None:
        """Takes vol1 or shared1 where that is possible, gives them up again, or plugs a disk of his own."""
        taken = [volume for volume in VOLUMES if self.strangers(volume)]
        if what == "plug":
            self.strange_disk(server, name)
        elif taken:
            self.outsider.leave(taken[0])
        elif self.facts.volumes["shared1"]["status"] in {"available", "in-use"} and not self.marred_volume("shared1"):
            self.outsider.attach("shared1")
        elif self.facts.volumes["vol1"]["status"] == "available" and not self.marred_volume("vol1"):
            self.outsider.reserve("vol1")
        self.foreign(server if what == "plug" else "")

    def strange_disk(self, server: str, name: str) -> None:
        """A name and an address that are free in the guest, although the ledger may hold them."""
        bus = {"vdb": "0x05", "vdc": "0x06"}[name]
        scopes = self.facts.guests[server]
        disks = [disk for scope in ("live", "persistent") if scope in scopes for disk in scopes[scope].disks]
        free = not any(disk.target == name or ("bus", bus) in disk.address for disk in disks)
        if free and "saved" not in scopes:
            self.outsider.attach_disk(server, name, bus)
