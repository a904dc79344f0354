"""``tether qos``."""

from __future__ import annotations

import argparse
import uuid
from typing import Any

from tether.cli.base import JOB_FIELDS, ShowOne, job_fields


class Qos(ShowOne):
    """Give an attached disk the limits that Cinder has for its volume now, in the running server too.

    Cinder gives a connection the front-end QoS specs of the volume's type when it is made; what is changed there
    later, also by a retype, reaches an attached disk by this command. It is undone where a part of it fails (exit 3).
    """

    fields = (*JOB_FIELDS, "device", "limits")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help="id or unique name of the volume")
        parser.add_argument("server", metavar="SERVER", help="UUID or name of the server that has it")
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
            from tether.runner.qos import Limiting, submit_qos

            asked = Limiting(parsed_args.volume, parsed_args.server, parsed_args.request_id, not parsed_args.no_wait)
            title = f"qos {asked.volume} · {asked.server}"
            job = carry_out(self.app, world, title, lambda runner: submit_qos(runner, asked, job_id))
        self.exit_code = job.exit_code if job.exit_code is not None else 0
        fields = job_fields(job, live=False) | {"device": job.params.device, "limits": job.params.limits or "none"}
        return tuple(fields), tuple(fields.values())
