"""``tether key``: the keys that connection info is sealed with in the database."""

from __future__ import annotations

import argparse
from typing import Any

from tether.cli.base import Command, ShowOne


class RotateKey(Command):
    """Seal everything with a new key, and drop the keys before the last one.

    Runners may go on meanwhile. If it is interrupted, run it again: it finishes what it began. With the keys of a key
    manager, put the new one first in the settings before.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        from tether.persistence.keys import fingerprint

        with self.vault() as vault:
            done = vault.rotate()
            key = fingerprint(vault.ring.keys()[0])
        what = "finished an interrupted rotation" if done.resumed else "rotated"
        self.app.say(f"{what}: all is sealed with key {key} now; {done.renewed} sealed anew")
        if done.unreadable:
            self.app.say(f"tether: no key opens {done.unreadable} of the secrets; they were left as they are")
            self.app.say("next: put back the key that is missing; if it is lost for good: tether key forget")


class ForgetKey(Command):
    """Delete what no key opens, after a key was lost for good; then begin anew with the keys that are there.

    Connection info that is deleted is read again from Cinder where it is needed.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        with self.vault() as vault:
            lost = vault.forget()
        self.app.say(f"deleted {lost} secrets that no key opens")


class ShowKey(ShowOne):
    """Show where the keys are, their fingerprints, and whether they fit the database; never a key."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        from tether.persistence.keys import fingerprint

        with self.vault() as vault:
            fits = vault.fits()
            fields = {
                "where": vault.ring.source.where,
                "keys": [fingerprint(key) for key in vault.ring.source.load() or ()],
                "fits": "nothing is sealed yet" if fits is None else "yes" if fits else "no",
                "secrets": vault.count(),
            }
        return tuple(fields), tuple(fields.values())
