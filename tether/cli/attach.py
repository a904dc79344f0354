"""``tether attach``, ``tether detach`` and ``tether adopt``."""

from __future__ import annotations

import argparse
import functools
import uuid
from typing import TYPE_CHECKING, Any

from tether.cli.base import JOB_FIELDS, ShowOne, job_fields
from tether.cli.consent import add_force, is_forced
from tether.cli.printable import Lines
from tether.errors import UsageError

if TYPE_CHECKING:
    from tether.runner.requests import Request


#: Of several volumes: ``volumes`` says which device each has.
ALL_FIELDS = (*JOB_FIELDS, "volumes")


class Ask(ShowOne):
    """What attach, detach and adopt share."""

    kind: str
    #: It may be asked for of several volumes.
    several = False
    fields: tuple[str, ...] = JOB_FIELDS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        several: dict[str, Any] = {"nargs": "+"} if self.several else {}
        parser.add_argument("volume", metavar="VOLUME", help="id or unique name of the volume", **several)
        parser.add_argument("server", metavar="SERVER", help="UUID or name of the server (libvirt domain)")
        parser.add_argument(
            "--request-id", default="", metavar="KEY", help="the same key twice is one job, whatever happens between"
        )
        parser.add_argument(
            "--no-wait", action="store_true", help="exit 5 at once if another job has the volume, instead of waiting"
        )
        parser.add_argument(
            "--allow-nova",
            action="store_true",
            help="also on a server that Nova manages, which deletes what it does not know at the server's next reboot",
        )
        return parser

    def request(self, parsed_args: argparse.Namespace) -> Request:
        """Return what was asked for."""
        from tether.runner.requests import Request

        return Request(
            parsed_args.volume[0] if self.several else parsed_args.volume,
            parsed_args.server,
            key=parsed_args.request_id,
            join=not parsed_args.no_wait,
            allow_nova=parsed_args.allow_nova,
        )

    def check(self, parsed_args: argparse.Namespace) -> None:
        """Refuse words that go together badly, before anything is opened."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        self.check(parsed_args)
        job_id = str(uuid.uuid4())
        with self.world(f"req-{job_id}", connects=True) as world:
            from tether.cli.work import carry_out
            from tether.runner.requests import submit

            request = self.request(parsed_args)
            title = f"{self.kind} {request.volume} · {request.server}"
            job = carry_out(self.app, world, title, lambda runner: submit(runner, self.kind, request, job_id))
            mapping = world.tools.ledger.mapping(job.volume_id, job.server_id)
            fields = job_fields(job, live=False)
        self.exit_code = job.exit_code if job.exit_code is not None else 0
        if self.kind != "detach":  # what was rolled back has none of them, and the same columns
            fields |= {
                "device": mapping.target if mapping else "",
                "bus": mapping.bus if mapping else "",
                "mode": mapping.mode if mapping else "",
            }
        return tuple(fields), tuple(fields.values())


class Attach(Ask):
    """Attach a volume to a server, or several as one.

    Either the volume is attached in the end, or nothing is left of the attempt (exit 3), or the job is blocked and
    says what is held (exit 4). Attaching what is attached already is a success. With --all this holds of all volumes
    together: none of them reaches the guest before all are ready.
    """

    kind = "attach"
    several = True
    fields = (*JOB_FIELDS, "device", "bus", "mode")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        if self.several:
            parser.add_argument("--all", action="store_true", help="attach several volumes: all of them, or none")
        parser.add_argument("--device", default="", metavar="vdX", help="the target name in the guest")
        parser.add_argument("--bus", default="", choices=("virtio", "scsi", "sata"), help="default: [libvirt] disk_bus")
        parser.add_argument("--mode", default="rw", choices=("rw", "ro"), help="default: rw")
        parser.add_argument(
            "--dialect",
            default="auto",
            choices=("auto", "attachments", "legacy"),
            help="of Cinder's API; default: auto",
        )
        parser.add_argument(
            "--format-luks",
            action="store_true",
            help="format an encrypted volume that has no LUKS header, even if it is not provably new: what it holds is"
            " lost",
        )
        return parser

    def columns(self, parsed_args: argparse.Namespace) -> tuple[str, ...]:
        return ALL_FIELDS if self.several and parsed_args.all else self.fields

    def check(self, parsed_args: argparse.Namespace) -> None:
        if not self.several:
            return
        words = " ".join(parsed_args.volume)
        if not parsed_args.all:
            if len(parsed_args.volume) > 1:
                raise UsageError(
                    f"these are several volumes: {words}",
                    hint=f"as one, all or nothing: tether attach --all {words} {parsed_args.server}",
                )
        elif parsed_args.device or parsed_args.format_luks:
            option = "--device" if parsed_args.device else "--format-luks"
            raise UsageError(f"{option} is for one volume", hint=f"leave {option} out, or attach that volume by itself")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        return self._take_all(parsed_args) if parsed_args.all else super().take_action(parsed_args)

    def _take_all(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        self.check(parsed_args)
        job_id = str(uuid.uuid4())
        with self.world(f"req-{job_id}", connects=True) as world:
            from tether.cli.work import carry_out
            from tether.runner.whole import submit_all

            names, request = parsed_args.volume, self.request(parsed_args)
            title = f"attach {len(names)} volumes · {parsed_args.server}"
            start = functools.partial(submit_all, names=names, request=request, job_id=job_id)
            job = carry_out(self.app, world, title, start, several=True)
            volumes = [world.tools.cinder.find_volume(name) for name in names]
            mappings = [world.tools.ledger.mapping(volume.id, job.server_id) for volume in volumes]
            fields = job_fields(job, live=False)
        self.exit_code = job.exit_code if job.exit_code is not None else 0
        rows = [
            {"volume": volume.name or volume.id, "volume_id": volume.id, "device": mapping.target if mapping else ""}
            for volume, mapping in zip(volumes, mappings, strict=True)
        ]
        lines = Lines("\n".join(f"{row['volume']} {row['device']}".rstrip() for row in rows))
        fields |= {"volumes": rows if self.is_machine else lines}
        return tuple(fields), tuple(fields.values())

    def request(self, parsed_args: argparse.Namespace) -> Request:
        from dataclasses import replace

        return replace(
            super().request(parsed_args),
            device=parsed_args.device,
            bus=parsed_args.bus,
            mode=parsed_args.mode,
            dialect=parsed_args.dialect,
            format_luks=parsed_args.format_luks,
        )


class Detach(Ask):
    """Detach a volume from a server.

    The guest must let go first; until it has, everything is put back if something fails (exit 3). Afterwards the job
    only goes forward.
    """

    kind = "detach"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_force(parser)
        return parser

    def check(self, parsed_args: argparse.Namespace) -> None:
        is_forced(parsed_args)

    def request(self, parsed_args: argparse.Namespace) -> Request:
        from dataclasses import replace

        return replace(super().request(parsed_args), force=parsed_args.force)


class Adopt(Ask):
    """Take over an attachment that was made by hand, by another tool, or by a tether whose ledger is lost.

    All five books must show one attachment, and no mapping; what contradicts it is named, and nothing is changed
    (exit 3). The disk, the connection and Cinder's rows stay as they are. Afterwards the volume is detached as any
    other.
    """

    kind = "adopt"
    fields = (*JOB_FIELDS, "device", "bus", "mode")
