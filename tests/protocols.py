"""Which protocol can do what, and what shows it: ``docs/protocols.md``, from the marks of the tests themselves.

A test says ``@pytest.mark.proves("iscsi", "attach", "detach")``; the tier that it is in says how well it is proven.
``python -m tests.protocols`` writes the page, as ``bin/docs`` does; a unit test compares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import pytest

from tests.tree import ROOT

PAGE = "docs/protocols.md"
#: Best first: what a test of each tier is worth.
WORDS = {"lab": "lab-proven", "live": "live-proven", "contract": "contract-tested"}
NOT = "not supported"
NEVER = "n/a"

#: What a mark may name -> how the page calls it.
PROTOCOLS = {
    "iscsi": "iSCSI",
    "iscsi-qemu": "iSCSI by QEMU",
    "iser": "iSER",
    "nvmeof": "NVMe-oF",
    "fibre_channel": "Fibre Channel",
    "scaleio": "PowerFlex",
    "storpool": "StorPool",
    "lightos": "LightOS",
    "local": "local",
    "nfs": "NFS",
    "rbd": "RBD",
}
#: What a mark may name -> what it means.
FEATURES = {
    "attach": "the volume becomes a disk of the guest",
    "detach": "nothing of it is left on the host",
    "undo": "a connect that failed half-way is undone",
    "shared": "another volume of the same target, subsystem or share is left alone",
    "identity": "a device that is not the volume is refused",
    "multipath": "several paths, one device",
    "CHAP": "log-in with a password",
    "encryption": "LUKS: dm-crypt on the host, or by QEMU where it connects by itself",
    "reconnect": "connected again after a reboot of the host",
    "migrate": "handed over to the host that the server moves to",
    "extend": "grow while attached",
    "multiattach": "two guests of one host",
    "read-only": "read-only in the guest",
    "discard": "the guest's discard reaches the backend",
    "QoS": "front-end limits of the volume type",
    "block sizes": "logical and physical block size of the backend",
}
#: What does not exist for a protocol, whoever attaches.
MEANINGLESS = {
    "multipath": {"iscsi-qemu", "scaleio", "storpool", "local", "nfs", "rbd"},
    "CHAP": set(PROTOCOLS) - {"iscsi", "iscsi-qemu", "iser"},
    "undo": {"iscsi-qemu", "local", "rbd"},
    "shared": {"iscsi-qemu", "scaleio", "storpool", "local", "rbd"},
}

#: What the table has no room for.
NOTES = {
    "iscsi": "Where Cinder does not know whether volumes share a target (`shared_targets` is null, from 3.69), or they"
    " do and open-iscsi scans by itself, one of them comes or goes at a time on a host. The lock is the one that Nova"
    " and Cinder take, `os-brick-<service_uuid>` in `[host] lock_path`; who waits longer than `wait` ends with 5, and"
    " nothing is left. Over fewer paths than the backend has portals an attach goes on with a warning; with fewer than"
    " `[host] volume_min_paths` it is rolled back.",
    "nvmeof": "Without an identity in the connection info the namespace is known by its number. Where volumes share a"
    " subsystem, a namespace goes when its attachment is deleted, which is the step after the disconnect, and the"
    " controllers with the last. Replicas (`nvmeof` with `volume_replicas`) are refused.",
    "fibre_channel": "os-brick leaves the disks of a connect that failed; tether removes them.",
    "scaleio": "Where Cinder itself maps the volume (`sdc_guid`), the device goes when the attachment is deleted, which"
    " is the step after the disconnect.",
    "lightos": "The discovery entry goes with the disconnect, the device when the attachment is deleted.",
    "local": "The device is the host's own: nothing is connected, and nothing but tether's link is taken away.",
    "nfs": "The mount is one for all volumes of a share. It is unmounted if tether has mounted it, no other volume uses"
    " it, and no disk of a server of this host, running or not, names a file of it. The format is what Cinder says,"
    " never guessed from the file. Refused: a qcow2 file that rests on another (a volume with snapshots), and encrypted"
    " volumes.",
}

_PLUGIN = "tests.protocols"
_BEGIN = "PROVEN:"


@dataclass(frozen=True, order=True)
class Proof:
    """One test that shows one feature of one protocol."""

    protocol: str
    feature: str
    tier: str
    test: str


def proofs_of(item: pytest.Item) -> list[Proof]:
    """Return what a test's own marks say that it shows.

    Raises:
        pytest.UsageError: a mark names what the page does not know, or stands on a test of another tier.
    """
    place = PurePath(item.nodeid.partition("::")[0])
    tier = place.parts[1]
    test = "::".join((place.name, *(part.partition("[")[0] for part in item.nodeid.split("::")[1:])))
    if place.stem.endswith("_sim"):
        return []  # the simulated world shares the suites, but says nothing of a protocol
    found = []
    for mark in item.iter_markers("proves"):
        protocol, *features = mark.args
        unknown = {protocol} - set(PROTOCOLS) | set(features) - set(FEATURES)
        senseless = {name for name in features if protocol in MEANINGLESS.get(name, ())}
        if tier not in WORDS or unknown or senseless or not features:
            raise pytest.UsageError(f"{item.nodeid}: proves{mark.args} is nothing that {PAGE} could tell")
        found += [Proof(protocol, feature, tier, f"{tier}/{test}") for feature in features]
    return found


def pytest_collection_finish(session: pytest.Session) -> None:
    """As a plugin of a pytest that only collects: print what the marks say."""
    found = sorted({proof for item in session.items for proof in proofs_of(item)})
    print(_BEGIN + json.dumps([[proof.protocol, proof.feature, proof.tier, proof.test] for proof in found]))


def collect() -> list[Proof]:
    """Return what the marks of all tests say, by a pytest of its own that collects them and runs none."""
    folders = [f"tests/{tier}" for tier in WORDS]
    words = ["-m", "pytest", "-p", _PLUGIN, "--collect-only", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    every = os.environ | {"TETHER_TEST_FULL": "1"}
    done = subprocess.run(
        [sys.executable, *words, *folders], cwd=ROOT, capture_output=True, text=True, check=False, env=every
    )
    told = [line for line in done.stdout.splitlines() if line.startswith(_BEGIN)]
    if done.returncode or not told:
        raise SystemExit(f"the tests could not be collected:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [Proof(*fields) for fields in json.loads(told[0].removeprefix(_BEGIN))]


def best(proofs: Iterable[Proof]) -> dict[tuple[str, str], list[Proof]]:
    """Return for every protocol and feature the proofs of its best tier."""
    found: dict[tuple[str, str], list[Proof]] = defaultdict(list)
    ranks = list(WORDS)
    for proof in sorted(proofs, key=lambda each: (ranks.index(each.tier), each)):
        known = found[proof.protocol, proof.feature]
        if not known or known[0].tier == proof.tier:
            known.append(proof)
    return dict(found)


def cell(protocol: str, feature: str, found: Mapping[tuple[str, str], list[Proof]]) -> str:
    """Return what the table says of one feature of one protocol."""
    if protocol in MEANINGLESS.get(feature, ()):
        return NEVER
    known = found.get((protocol, feature))
    return WORDS[known[0].tier] if known else NOT


HEAD = """# Protocols

Written by `bin/docs` from the marks of the tests (`proves` in `tests/`); do not edit. *lab-proven*: shown on \
[the lab](lab.md), a whole compute host. *live-proven*: shown with real Cinder, libvirt, QEMU and a real target. \
*contract-tested*: shown on recorded connection info over a stand-in for os-brick and the host's files, and the \
`<disk>` compared with Nova's. *not supported*: no test shows it, so do not count on it. *n/a*: the protocol has no \
such thing. A volume of any other protocol is refused, and what was exported is taken back (exit code 3).
"""


def page(proofs: Iterable[Proof] | None = None) -> str:
    """Return the page.

    Args:
        proofs: what the marks say; None collects it.
    """
    found = best(collect() if proofs is None else proofs)
    lines = [*HEAD.splitlines(), ""]
    lines += [f"| | {' | '.join(PROTOCOLS.values())} |", "|---" * (len(PROTOCOLS) + 1) + "|"]
    for feature in FEATURES:
        cells = [cell(protocol, feature, found) for protocol in PROTOCOLS]
        lines.append(f"| **{feature}** | {' | '.join(cells)} |")
    lines += ["", "## What each means", ""]
    lines += [f"* **{feature}**: {meaning}." for feature, meaning in FEATURES.items()]
    lines += ["", "## Shown by", "", "Of each, the tests of the best tier.", ""]
    for protocol, name in PROTOCOLS.items():
        tests: dict[str, list[str]] = defaultdict(list)
        for feature in FEATURES:
            for test in sorted({proof.test for proof in found.get((protocol, feature), ())}):
                tests[test].append(feature)
        lines += [f"**{name}** (`{protocol}`)", ""]
        lines += [NOTES[protocol], ""] if protocol in NOTES else []
        lines += [f"* `{test}`: {', '.join(features)}" for test, features in tests.items()] or ["* nothing"]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Write the page if it is out of date."""
    path, text = ROOT / PAGE, page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
