"""The flow that gives a disk other limits."""

from __future__ import annotations

from tether.flows.repair import chained
from tether.tasks import qos

#: The persistent definition first: a server that starts between the two has the limits then.
build = chained("qos", lambda _params: [qos.CheckLimits, qos.LimitPersistent, qos.LimitLive])
