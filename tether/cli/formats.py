"""Output formats that cliff has for lists alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TextIO

from cliff.formatters.base import SingleFormatter
from cliff.formatters.commaseparated import CSVLister


class CSVShow(CSVLister, SingleFormatter):
    """One object as CSV: a line of names, and a line of values."""

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: argparse.Namespace
    ) -> None:
        self.emit_list(column_names, [data], stdout, parsed_args)
