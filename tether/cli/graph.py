"""``tether graph``: the flow of an attach or a detach, drawn from the flow that is run."""

from __future__ import annotations

import argparse

from tether.cli.base import Command


class _Graph(Command):
    kind: str

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "-f",
            "--format",
            default="mermaid",
            choices=("dot", "mermaid", "svg"),
            help="graphviz's language, mermaid's, or an image; default: mermaid",
        )
        parser.add_argument(
            "--dialect",
            default="attachments",
            choices=("attachments", "legacy"),
            help="of Cinder's API; default: attachments",
        )
        parser.add_argument(
            "--data-path", default="host", choices=("host", "network"), help="how data reach the guest; default: host"
        )
        parser.add_argument("--encrypted", action="store_true", help="the flow of an encrypted volume")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.flows.graph import graph, to_dot, to_mermaid
        from tether.flows.svg import to_svg
        from tether.persistence.params import Params

        params = Params(dialect=parsed_args.dialect, data_path=parsed_args.data_path, encrypted=parsed_args.encrypted)
        write = {"dot": to_dot, "mermaid": to_mermaid, "svg": to_svg}[parsed_args.format]
        self.app.stdout.write(write(graph(self.kind, params)))


class GraphAttach(_Graph):
    """Draw the steps of an attach and what waits for what. No cloud is asked."""

    kind = "attach"


class GraphExtend(_Graph):
    """Draw the steps of an extend and what waits for what. No cloud is asked."""

    kind = "extend"


class GraphQos(_Graph):
    """Draw the steps that give a disk other limits, and what waits for what. No cloud is asked."""

    kind = "qos"


class GraphDetach(_Graph):
    """Draw the steps of a detach and what waits for what. No cloud is asked."""

    kind = "detach"
