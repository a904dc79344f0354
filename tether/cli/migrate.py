"""``tether migrate``: the hand-over of a server's volumes to another host, for a live migration."""

from __future__ import annotations

import abc
import argparse
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.cli.base import Command, Lister

if TYPE_CHECKING:
    from tether.persistence.ledger import Job
    from tether.runner.jobs import Runner
    from tether.runner.migrate import Move, Start
    from tether.runner.requests import Accepted
    from tether.runner.world import World

COLUMNS = ("volume", "device", "state", "job")
DETAILS = ("exit_code", "volume_id", "attachment_id")


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="SERVER", help="UUID or name of the server (libvirt domain)")
    parser.add_argument("--to", required=True, metavar="HOST", help="the host that it moves to, by its host name")


class Migrate(Lister):
    """What the parts of a hand-over share.

    Attributes:
        verb: how progress names what is done.
        refused: the last part was not begun.
        done: the jobs of those before it.
    """

    fields = (*COLUMNS, *DETAILS)
    verb: str
    refused = False
    done: list[Job]

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_words(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        with self.world(f"req-{uuid.uuid4()}", connects=True) as world:
            from tether.runner.jobs import Runner
            from tether.runner.migrate import find_move

            runner = Runner(world.tools, world.logbook)
            try:
                move = find_move(runner, parsed_args.server, parsed_args.to)
                parts = self.parts(runner, move)
            finally:
                runner.close()
            jobs = self.carry_out(world, move, parts)
            rows = [self._row(world, job) for job in jobs]
            self.conclude(move, jobs)
        # On a terminal what identifies a row to programs would only make it too wide.
        wanted = self.fields if self.is_machine or set(parsed_args.columns) - set(COLUMNS) else COLUMNS
        return wanted, [row[: len(wanted)] for row in rows]

    @abc.abstractmethod
    def parts(self, runner: Runner, move: Move) -> list[tuple[str, Start]]:
        """Return what this host has to do."""

    def conclude(self, move: Move, jobs: list[Job]) -> None:
        """Say what comes next."""

    def carry_out(self, world: World, move: Move, parts: list[tuple[str, Start]]) -> list[Job]:
        """Run the jobs one after another, up to the first that is not done."""
        from tether.cli.work import carry_out

        self.done = []
        for volume_id, start in parts:
            self.refused = True

            def begin(runner: Runner, start: Start = start) -> Accepted:
                accepted = start(runner)
                self.refused = False
                return accepted

            job = carry_out(self.app, world, f"{self.verb} {volume_id} · {move.server[1]}", begin)
            self.done.append(job)
            if job.exit_code:
                self.exit_code = job.exit_code
                break
        return self.done

    def _row(self, world: World, job: Job) -> tuple[Any, ...]:
        mapping = world.tools.ledger.mapping(job.volume_id, job.server_id)
        end = world.tools.ledger.handovers.find(job.volume_id, job.server_id)
        attachment_id = end.attachment_id if end and job.state == "prepared" else mapping and mapping.attachment_id
        return (
            job.volume_name,
            mapping.target if mapping else "",
            job.state,
            job.id,
            job.exit_code,
            job.volume_id,
            attachment_id or "",
        )


class PrepareMigration(Migrate):
    """Get a host ready for a server that is to move to it: run this there.

    Each of the server's volumes gets a second attachment in Cinder and is connected here, too; the server keeps what it
    has. If one of them cannot be prepared, the others are released again (exit 3). The hosts share one ledger.
    """

    verb = "prepare"

    def parts(self, runner: Runner, move: Move) -> list[tuple[str, Start]]:
        from tether.runner.migrate import check_destination, preparations

        check_destination(runner, move)
        return preparations(move)

    def carry_out(self, world: World, move: Move, parts: list[tuple[str, Start]]) -> list[Job]:
        from tether.errors import TetherError

        try:
            jobs = super().carry_out(world, move, parts)
        except TetherError:
            # What was refused has left nothing. What was begun is another runner's by now, or is to be resumed.
            if self.refused:
                self._take_back(world, move)
            raise
        if jobs and jobs[-1].state == "rolled-back":
            self._take_back(world, move)
        return jobs

    def _take_back(self, world: World, move: Move) -> None:
        """Release what this command has prepared: a server moves with all of its volumes, or not at all."""
        from dataclasses import replace

        from tether.runner.jobs import Runner
        from tether.runner.migrate import find_move, releases

        own = {job.id for job in self.done}
        if not any(row.job_id in own for row in world.tools.ledger.handovers.list(server_id=move.server[0])):
            return
        code, runner = self.exit_code, Runner(world.tools, world.logbook)
        try:
            now = find_move(runner, move.server[0], move.to)
        finally:
            runner.close()
        now = replace(now, handovers=tuple(row for row in now.handovers if row.job_id in own))
        self.verb = "release"
        super().carry_out(world, move, releases(now))
        self.exit_code = max(code, self.exit_code)  # one that is blocked (4) says more than one that is not done (3)

    def conclude(self, move: Move, jobs: list[Job]) -> None:
        if not self.exit_code:
            xml = " with what tether migrate xml makes of its XML there" if self._by_network(jobs) else ""
            self.app.say(
                f"next: move the server (virsh migrate --live){xml}, then here: tether migrate complete {move.words}"
            )

    @staticmethod
    def _by_network(jobs: list[Job]) -> bool:
        return any(job.params.data_path == "network" for job in jobs)


class MigrationXml(Command):
    """Print a server's XML as it is on the host that is prepared for it, for virsh migrate --xml: run this where it is.

    Disks that QEMU connects by itself open another connection there, in that host's name; they are found by their
    serials. All other disks are the same on every host, and so is the XML.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_words(parser)
        parser.add_argument(
            "--file", default="-", metavar="FILE", help="what virsh dumpxml --migratable SERVER prints; default: stdin"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        domain = self._read(parsed_args.file)
        with self.world(f"req-{uuid.uuid4()}") as world:
            from tether.adapters.guest.disk import rehome
            from tether.runner.jobs import Runner
            from tether.runner.migrate import disks_there, find_move

            runner = Runner(world.tools, world.logbook)
            try:
                specs = disks_there(world.tools, find_move(runner, parsed_args.server, parsed_args.to))
            finally:
                runner.close()
        self.app.stdout.write(rehome(domain, specs) + "\n")

    def _read(self, name: str) -> str:
        from tether.errors import UsageError

        try:
            return self.app.stdin.read() if name == "-" else Path(name).read_text()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{name} cannot be read: {error}", hint="give what virsh dumpxml --migratable SERVER prints"
            ) from error


class CompleteMigration(Migrate):
    """Finish a hand-over once the server has moved: first on the host that it has moved to, then where it came from.

    There its volumes become that host's; here they are disconnected, and their first attachments deleted. What a server
    of this host still uses is not touched (exit 3).
    """

    verb = "complete"

    def parts(self, runner: Runner, move: Move) -> list[tuple[str, Start]]:
        from tether.runner.migrate import completions

        return completions(move)

    def conclude(self, move: Move, jobs: list[Job]) -> None:
        if not jobs:
            self.app.say(f"tether: nothing is left to be done on this host for server {move.server[1]}")
        elif not self.exit_code and jobs[0].state == "attached":
            self.app.say(f"next, on the host that it came from: tether migrate complete {move.words}")


class AbortMigration(Migrate):
    """Give a hand-over up before the server has moved: on the host that was prepared for it.

    What was connected here is disconnected, and the second attachments are deleted; the server keeps what it has.
    """

    verb = "release"

    def parts(self, runner: Runner, move: Move) -> list[tuple[str, Start]]:
        from tether.runner.migrate import releases

        return releases(move)

    def conclude(self, move: Move, jobs: list[Job]) -> None:
        if not jobs:
            self.app.say(f"tether: nothing is prepared for server {move.server[1]}")
