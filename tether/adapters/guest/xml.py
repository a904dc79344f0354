"""Reads a domain's XML into a :class:`Definition`, and writes tether's marks.

The XML of a domain is foreign text: anyone may have defined it. What is not needed is ignored, a DTD is
refused (libvirt never writes one), and XML that is not a domain's is a FinalError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from tether.adapters.guest.model import Controller, Definition, Disk, alias_of
from tether.errors import FinalError

#: The namespace of tether's marks in a domain's ``<metadata>``.
MARKS_URI = "https://tether.dev/xmlns/1"
#: The prefix, which is also the key that libvirt's setMetadata wants.
MARKS_KEY = "tether"
#: Nova's namespace has a version at its end (1.0, 1.1, …).
NOVA_URI = "http://openstack.org/xmlns/libvirt/nova/1."

#: Digits of a controller's index: libvirt's are 32 bits.
LONGEST_INDEX = 10

_FORBIDDEN = re.compile(r"<!(DOCTYPE|ENTITY)")

ET.register_namespace(MARKS_KEY, MARKS_URI)


def parse_definition(xml: str) -> Definition:
    """Read one definition of a domain.

    Args:
        xml: what ``virDomainGetXMLDesc`` gave, without security information.

    Raises:
        FinalError: it is not well-formed, carries a DTD, or is not a ``<domain>``.
    """
    root = parse_element(xml, "domain")
    devices = root.find("devices")
    children = list(devices) if devices is not None else []
    machine = root.find("os/type")
    return Definition(
        machine=machine.get("machine", "") if machine is not None else "",
        disks=tuple(parse_disk(child) for child in children if child.tag == "disk"),
        controllers=tuple(_controller(child) for child in children if child.tag == "controller"),
        # Only a device's own address: the one inside <source> of a hostdev is the host's.
        addresses=tuple(dict(address.attrib) for child in children for address in child.findall("address")),
        marks=_marks_of(root),
        adopted=_adopted_of(root),
        nova=any(_namespace(element).startswith(NOVA_URI) for element in root.iterfind("metadata/*")),
    )


def parse_element(xml: str, tag: str) -> ET.Element:
    """Parse text whose outermost element must be ``tag``, without DTD and entities.

    Raises:
        FinalError: it is something else.
    """
    hint = f"look at the XML with `virsh dumpxml` and correct the <{tag}> by hand"
    if _FORBIDDEN.search(xml):
        raise FinalError(f"the <{tag}> XML carries a DTD or entities, which libvirt never writes", hint=hint)
    try:
        root = ET.fromstring(xml)  # noqa: S314 - DTDs, the only danger, are refused above
    except (ET.ParseError, ValueError) as error:
        raise FinalError(f"the <{tag}> XML is broken: {error}", hint=hint) from error
    if root.tag != tag:
        raise FinalError(f"expected <{tag}> XML and found <{root.tag}>", hint=hint)
    return root


def parse_disk(element: ET.Element) -> Disk:
    """Read one ``<disk>``; what is absent is empty."""
    target = element.find("target")
    alias = element.find("alias")
    address = element.find("address")
    kind = element.get("type", "")
    return Disk(
        target=target.get("dev", "") if target is not None else "",
        bus=target.get("bus", "") if target is not None else "",
        alias=alias.get("name", "") if alias is not None else "",
        serial=(element.findtext("serial") or "").strip(),
        source=_source(element.find("source"), kind),
        source_type=kind,
        device=element.get("device", "disk"),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        address=dict(address.attrib) if address is not None else {},
        xml=_text(element),
    )


def not_own(xml: str, volume_id: str) -> Disk | None:
    """Return the disk that a ``<disk>`` element says, or None if it is one of tether's own, by its alias."""
    disk = parse_disk(parse_element(xml, "disk"))
    return None if disk.alias == alias_of(volume_id) else disk


def iscsi_source(name: str) -> str:
    """Return an iSCSI source's name with its LUN: libvirt takes a name without one as LUN 0."""
    return name if "/" in name else f"{name}/0"


def marks_xml(
    marks: Mapping[str, str], adopted: Mapping[str, tuple[str, str]] | None = None, *, prefixed: bool = True
) -> str:
    """Return the metadata element for the marks (volume id -> job id).

    Args:
        marks: what to write.
        adopted: volume id -> target and source of a disk that is not tether's own.
        prefixed: True for the element as it stands in a domain's XML; False for what setMetadata takes,
            which puts the namespace on by itself.
    """
    name = f"{{{MARKS_URI}}}%s" if prefixed else "%s"
    root = ET.Element(name % "volumes")
    for volume_id, job_id in sorted(marks.items()):
        target, source = (adopted or {}).get(volume_id, ("", ""))
        place = {"target": target, "source": source} if target else {}
        ET.SubElement(root, name % "volume", {"id": volume_id, "job": job_id, **place})
    return ET.tostring(root, encoding="unicode")


def parse_marks(xml: str) -> dict[str, str]:
    """Return volume id -> job id of a marks element, with or without its namespace.

    Raises:
        FinalError: it is not well-formed.
    """
    if _FORBIDDEN.search(xml):
        raise FinalError("tether's mark carries a DTD", hint="look at the domain's metadata with `virsh metadata`")
    try:
        root = ET.fromstring(xml)  # noqa: S314 - DTDs, the only danger, are refused above
    except (ET.ParseError, ValueError) as error:
        raise FinalError(
            f"tether's mark is broken: {error}", hint="look at the domain's metadata with `virsh metadata`"
        ) from error
    return _marks_in(root)


def _marks_of(root: ET.Element) -> dict[str, str]:
    element = root.find(f"metadata/{{{MARKS_URI}}}volumes")
    return _marks_in(element) if element is not None else {}


def _adopted_of(root: ET.Element) -> dict[str, tuple[str, str]]:
    element = root.find(f"metadata/{{{MARKS_URI}}}volumes")
    return {
        child.get("id", ""): (child.get("target", ""), child.get("source", ""))
        for child in _children_of(element)
        if child.get("target")
    }


def _marks_in(element: ET.Element) -> dict[str, str]:
    return {child.get("id", ""): child.get("job", "") for child in _children_of(element)}


def _children_of(element: ET.Element | None) -> list[ET.Element]:
    """Return the marks in the element; libvirt puts the namespace on the element alone."""
    names = ("volume", f"{{{MARKS_URI}}}volume")
    return [child for child in element if child.tag in names and child.get("id")] if element is not None else []


def _namespace(element: ET.Element) -> str:
    # A comment's tag is a function; the default parser drops comments, so every tag is text here.
    return element.tag[1:].partition("}")[0] if element.tag.startswith("{") else ""


def _controller(element: ET.Element) -> Controller:
    address = element.find("address")
    index = element.get("index", "")
    target = element.find("target")
    return Controller(
        type=element.get("type", ""),
        model=element.get("model", ""),
        index=int(index) if index.isdecimal() and len(index) <= LONGEST_INDEX else -1,
        address=dict(address.attrib) if address is not None else {},
        hotplug=target is None or target.get("hotplug") != "off",
    )


def _source(source: ET.Element | None, kind: str) -> str:
    """Return what the disk opens, in the form that :func:`tether.adapters.guest.disk.source_of` gives."""
    if source is None:
        return ""
    if kind == "network":
        name = source.get("name", "")
        return iscsi_source(name) if source.get("protocol") == "iscsi" and name else name
    if kind == "volume":
        return f"{source.get('pool', '')}/{source.get('volume', '')}"
    attribute = {"file": "file", "block": "dev", "dir": "dir", "vhostuser": "path", "vhostvdpa": "dev"}.get(kind, "")
    return source.get(attribute, "")


def _text(element: ET.Element) -> str:
    """Return the element alone as text, without what follows it.

    Raises:
        FinalError: it is nested deeper than libvirt lets a backing chain be (200).
    """
    try:
        return ET.tostring(element, encoding="unicode").strip()
    except RecursionError as error:
        raise FinalError(
            f"the <{element.tag}> XML is nested too deeply to be read",
            hint="look at the XML with `virsh dumpxml`; libvirt itself ends a backing chain after 200",
        ) from error
