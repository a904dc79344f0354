"""The live world of ``bin/live``: real Cinder, libvirt, QEMU and iSCSI, all on loopback and all of its own.

Standard library only: it runs on the system's Python before anything is installed.
"""
