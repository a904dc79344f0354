"""Reading domains' XML, whoever wrote it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.adapters.guest.xml import marks_xml, parse_definition, parse_marks
from tether.errors import FinalError

VOLUME = "5b7e2d1c-0000-4000-8000-000000000001"

DOMAIN = f"""<domain type='kvm' id='3'>
  <name>web</name>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:name>web</nova:name></nova:instance>
    <tether:volumes xmlns:tether="https://tether.dev/xmlns/1">
      <tether:volume id="{VOLUME}" job="job-1"/><tether:volume job="no id"/><tether:other id="x" job="y"/>
    </tether:volumes>
  </metadata>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='block' device='disk' snapshot='no'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/run/tether/volumes/{VOLUME}' index='2'/><backingStore/>
      <target dev='vdb' bus='virtio'/><serial>{VOLUME}</serial><shareable/>
      <alias name='ua-{VOLUME}'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='iscsi' name='iqn.2010-10.org.openstack:v'>
      <host name='::1' port='3260'/></source><target dev='sdb' bus='scsi'/></disk>
    <disk type='network'><source protocol='rbd' name='volumes/v1'/><target dev='sdc' bus='scsi'/></disk>
    <disk type='volume'><source pool='default' volume='v.img'/><target dev='sdd' bus='scsi'/></disk>
    <disk type='nvme'><source type='pci' namespace='1'/><target dev='sde' bus='scsi'/></disk>
    <disk/>
    <controller type='pci' index='4' model='pcie-root-port'><target chassis='4' port='0x13'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x3'/></controller>
    <controller type='pci' index='5' model='pcie-root-port'><target chassis='5' hotplug='off'/></controller>
    <controller type='usb' index='what'/>
    <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0xaa' slot='0x00' function='0x0'/>
      </source><address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/></hostdev>
    <something><new/></something>
  </devices>
</domain>"""


def test_a_definition_is_read():
    definition = parse_definition(DOMAIN)
    assert definition.machine == "pc-q35-7.2"
    assert definition.nova
    assert dict(definition.marks) == {VOLUME: "job-1"}
    disk = definition.disk(VOLUME)
    assert disk is not None
    assert (disk.target, disk.bus, disk.serial, disk.device) == ("vdb", "virtio", VOLUME, "disk")
    assert (disk.source, disk.source_type) == (f"/run/tether/volumes/{VOLUME}", "block")
    assert (disk.readonly, disk.shareable) == (False, True)
    assert disk.address["bus"] == "0x04"
    assert disk.xml.startswith("<disk ")
    assert disk.xml.endswith("</disk>")
    assert [item.index for item in definition.controllers] == [4, 5, -1]
    assert [item.hotplug for item in definition.controllers] == [True, False, True]


def test_sources_of_every_kind():
    sources = [disk.source for disk in parse_definition(DOMAIN).disks[1:]]
    assert sources == ["", "iqn.2010-10.org.openstack:v/0", "volumes/v1", "default/v.img", "", ""]


def test_the_hosts_own_address_of_a_passed_through_device_does_not_count():
    assert [address["bus"] for address in parse_definition(DOMAIN).addresses] == ["0x04", "0x00", "0x06"]


def test_a_bare_domain_is_read():
    definition = parse_definition("<domain/>")
    assert (definition.disks, definition.controllers, definition.nova) == ((), (), False)
    assert not definition.marks


@pytest.mark.parametrize(
    "uri", ["http://openstack.org/xmlns/libvirt/nova/1.0", "http://openstack.org/xmlns/libvirt/nova/1.2"]
)
def test_nova_is_recognised_by_its_namespace_only(uri):
    assert parse_definition(f"<domain><metadata><x:instance xmlns:x='{uri}'/></metadata></domain>").nova
    assert not parse_definition(f"<domain><metadata><nova uri='{uri}'/></metadata></domain>").nova


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain",
        "<network/>",
        "<domain>\x00</domain>",
        "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
        "<domain>&undefined;</domain>",
        "<domain>\ud800</domain>",
    ],
)
def test_broken_or_dangerous_xml_is_refused(xml):
    with pytest.raises(FinalError) as caught:
        parse_definition(xml)
    assert caught.value.hint


@given(st.text(alphabet="<>/='\" abdomin&;!\x00é", max_size=60))
def test_no_text_raises_anything_else(text):
    for candidate in (text, f"<domain>{text}</domain>", f"<domain><devices>{text}</devices></domain>"):
        with suppress(FinalError):
            parse_definition(candidate)


@pytest.mark.parametrize("prefixed", [True, False])
def test_marks_are_read_back(prefixed):
    marks = {VOLUME: "job-1", "a<&'\"": "job-2"}
    text = marks_xml(marks, prefixed=prefixed)
    assert parse_marks(text) == marks
    assert ("https://tether.dev/xmlns/1" in text) is prefixed


def test_marks_stand_in_metadata_as_promised():
    text = marks_xml({"v": "j"})
    assert text == (
        '<tether:volumes xmlns:tether="https://tether.dev/xmlns/1"><tether:volume id="v" job="j" /></tether:volumes>'
    )
    assert dict(parse_definition(f"<domain><metadata>{text}</metadata></domain>").marks) == {"v": "j"}


@pytest.mark.parametrize("xml", ["<volumes", "<!DOCTYPE x><volumes/>"])
def test_broken_marks_are_refused(xml):
    with pytest.raises(FinalError):
        parse_marks(xml)
