"""Imported once by the server that tether's commands are forked from; opens nothing and starts no thread."""

import sys

sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # as tether.cli.main has it

import cinderclient.v3.client
import keystoneauth1.session
import libvirt
import openstack.config
import pytest

import tether.adapters.cinder.session
import tether.adapters.guest.libvirt_guest
import tether.adapters.host.network
import tether.cli.attach
import tether.cli.job
import tether.cli.work
import tether.runner.world

__all__ = ["cinderclient", "keystoneauth1", "libvirt", "openstack", "pytest", "tether"]
