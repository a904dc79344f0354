"""``tether sim``: embedded worlds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tether.cli.base import Command, Lister


def _directory(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("directory", metavar="DIR", help="the world's directory")
    return parser


class CreateWorld(Command):
    """Make an embedded world: a Cinder with volumes, a host and servers, all in files of one directory."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _directory(super().get_parser(prog_name))
        parser.add_argument(
            "--beside", default="", metavar="DIR", help="a second host for that world: it shares its Cinder and ledger"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.sim.world import create

        create(Path(parsed_args.directory), Path(parsed_args.beside) if parsed_args.beside else None)
        self.app.say(f"next: tether sim show {parsed_args.directory}")


class ShowWorld(Lister):
    """Show what is in an embedded world: its volumes, servers and scripted failures."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _directory(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        from tether.sim.world import contents

        return ("what", "name", "id", "state", "details"), contents(Path(parsed_args.directory))


class MoveServer(Command):
    """Move a server to another host beside it, as virsh migrate --live --undefinesource does."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _directory(super().get_parser(prog_name))
        parser.add_argument("server", metavar="SERVER", help="UUID or name of the server (libvirt domain)")
        parser.add_argument("to", metavar="TO", help="the directory of the host that it moves to")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.sim.world import move

        move(Path(parsed_args.directory), parsed_args.server, Path(parsed_args.to))


class ScriptFailure(Command):
    """Script a failure in an embedded world: the next call of this kind goes wrong."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _directory(super().get_parser(prog_name))
        parser.add_argument("call", metavar="CALL", help="such as guest.plug_live; 'help' lists them")
        parser.add_argument("action", metavar="ACTION", nargs="?", default="fail", help="fail, timeout, lost-reply, …")
        parser.add_argument("--times", type=int, default=1, metavar="N", help="how many calls; -1: all; default: 1")
        parser.add_argument("--skip", type=int, default=0, metavar="N", help="let so many calls pass first")
        parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="for 'late' and 'slow'")
        parser.add_argument("--status", type=int, default=400, metavar="CODE", help="HTTP status of Cinder's 'fail'")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.sim.script import ACTIONS, CALLS, Scripted, add
        from tether.sim.world import ensure

        if parsed_args.call == "help":
            self.app.stdout.write("".join(f"{call}\n" for call in CALLS))
            self.app.stdout.write("".join(f"{name}: {text}\n" for name, text in ACTIONS.items()))
            return
        add(
            ensure(Path(parsed_args.directory)),
            Scripted(
                parsed_args.call,
                parsed_args.action,
                times=parsed_args.times,
                skip=parsed_args.skip,
                seconds=parsed_args.seconds,
                status=parsed_args.status,
            ),
        )
