"""``tether extend``."""

from __future__ import annotations

import argparse
import uuid
from typing import Any

from tether.cli.base import JOB_FIELDS, ShowOne, job_fields


class Extend(ShowOne):
    """Make an attached volume larger: in Cinder, on this host, and in the running guest.

    Until Cinder has accepted it nothing is changed (exit 3); afterwards the job only goes forward, and is blocked where
    it cannot (exit 4). With the size that the volume has already, host and guest catch up with Cinder.
    """

    fields = (*JOB_FIELDS, "size", "device")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help="id or unique name of the volume")
        parser.add_argument("size", metavar="SIZE", type=int, help="the new size in GiB, as Cinder counts")
        parser.add_argument(
            "--request-id", default="", metavar="KEY", help="the same key twice is one job, whatever happens between"
        )
        parser.add_argument(
            "--no-wait", action="store_true", help="exit 5 at once if another job has the volume, instead of waiting"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        job_id = str(uuid.uuid4())
        with self.world(f"req-{job_id}", connects=True) as world:
            from tether.cli.work import carry_out
            from tether.runner.extend import Extension, submit_extend

            asked = Extension(parsed_args.volume, parsed_args.size, parsed_args.request_id, not parsed_args.no_wait)
            title = f"extend {asked.volume} · {asked.size} GiB"
            job = carry_out(self.app, world, title, lambda runner: submit_extend(runner, asked, job_id))
            mapping = world.tools.ledger.mapping(job.volume_id, job.server_id)
            size = world.tools.cinder.show_volume(job.volume_id).size
        self.exit_code = job.exit_code if job.exit_code is not None else 0
        fields = job_fields(job, live=False) | {"size": size, "device": mapping.target if mapping else ""}
        return tuple(fields), tuple(fields.values())
