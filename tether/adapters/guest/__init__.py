"""The guest: libvirt domains, their disks and their secrets."""
