"""The table of protocols is what the marks of the tests say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import protocols
from tests.protocols import Proof
from tests.tree import ROOT


def item(node: str, *marks: tuple[str, ...]) -> pytest.Item:
    found = [SimpleNamespace(args=args) for args in marks]
    return cast(Any, SimpleNamespace(nodeid=node, iter_markers=lambda name: found if name == "proves" else []))


def test_the_page_is_what_the_marks_give() -> None:
    assert (ROOT / protocols.PAGE).read_text(encoding="utf-8") == protocols.page(), "run bin/docs"


def test_the_best_tier_decides_the_word() -> None:
    proofs = [
        Proof("iscsi", "attach", "contract", "contract/a"),
        Proof("iscsi", "attach", "lab", "lab/b"),
        Proof("iscsi", "attach", "live", "live/c"),
        Proof("iscsi", "detach", "live", "live/c"),
        Proof("iscsi", "detach", "contract", "contract/a"),
        Proof("nfs", "attach", "contract", "contract/a"),
    ]
    found = protocols.best(proofs)
    assert [proof.test for proof in found["iscsi", "attach"]] == ["lab/b"]
    told = {each: protocols.cell(*each, found) for each in (*found, ("nfs", "detach"), ("nfs", "CHAP"))}
    assert told == {
        ("iscsi", "attach"): "lab-proven",
        ("iscsi", "detach"): "live-proven",
        ("nfs", "attach"): "contract-tested",
        ("nfs", "detach"): "not supported",
        ("nfs", "CHAP"): "n/a",
    }
    lines = protocols.page(proofs).splitlines()
    (row,) = [line for line in lines if line.startswith("| **attach** |")]
    assert row.split("|")[2].strip() == "lab-proven"
    assert "* `lab/b`: attach" in lines
    assert "contract/a`: attach, detach" not in "\n".join(lines)


def test_a_test_is_named_once_whatever_its_parameters() -> None:
    marked = item("tests/lab/test_chain.py::TestIt::test_x[a-b]", ("iscsi", "attach"), ("iscsi", "detach"))
    assert protocols.proofs_of(marked) == [
        Proof("iscsi", feature, "lab", "lab/test_chain.py::TestIt::test_x") for feature in ("attach", "detach")
    ]
    assert protocols.proofs_of(item("tests/contract/test_host_sim.py::test_x", ("iscsi", "attach"))) == []


@pytest.mark.parametrize(
    ("node", "mark"),
    [
        ("tests/unit/test_x.py::test_x", ("iscsi", "attach")),
        ("tests/lab/test_x.py::test_x", ("isci", "attach")),
        ("tests/lab/test_x.py::test_x", ("iscsi", "plug")),
        ("tests/lab/test_x.py::test_x", ("nfs", "CHAP")),
        ("tests/lab/test_x.py::test_x", ("iscsi",)),
    ],
)
def test_a_mark_that_the_page_cannot_tell_is_an_error(node: str, mark: tuple[str, ...]) -> None:
    with pytest.raises(pytest.UsageError, match="proves"):
        protocols.proofs_of(item(node, mark))


def test_what_is_meaningless_is_of_the_table() -> None:
    assert set(protocols.MEANINGLESS) <= set(protocols.FEATURES)
    assert set().union(*protocols.MEANINGLESS.values()) <= set(protocols.PROTOCOLS)
