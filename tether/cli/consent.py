"""The two options of a forced detach, which are only given together."""

from __future__ import annotations

import argparse


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add both options."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on where the host cannot flush the device, whose storage is gone or hangs; the guest must let go all"
        " the same",
    )
    parser.add_argument(
        "--accept-lost-writes",
        action="store_true",
        help="with --force: what was written and has not reached the storage may be lost",
    )


def is_forced(parsed_args: argparse.Namespace) -> bool:
    """Return True if the detach is to be forced.

    Raises:
        UsageError: one of the options was given without the other.
    """
    from tether.errors import UsageError

    if parsed_args.force and not parsed_args.accept_lost_writes:
        raise UsageError(
            "--force may lose what was written to the volume and has not reached its storage, so it needs"
            " --accept-lost-writes",
            hint="see what the storage does (multipath -ll, iscsiadm -m session -P 1): detach without --force if it"
            " comes back, with both options if it is gone for good",
        )
    if parsed_args.accept_lost_writes and not parsed_args.force:
        raise UsageError(
            "--accept-lost-writes is for --force: without it no write is given up", hint="leave it out, or add --force"
        )
    return bool(parsed_args.force)
