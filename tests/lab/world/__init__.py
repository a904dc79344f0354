"""The lab of ``bin/lab``: a whole compute host, as a process or a virtual machine, made from Debian packages.

Kernel iSCSI and its target, multipath, LVM, dm-crypt, libvirt and QEMU are the host's own; Cinder serves from it too.
Standard library only, as in the live world: this part runs on the system's Python before anything is installed.
"""
