"""The flow of an all-or-nothing request: the flows of its parts are those of their own jobs."""

from __future__ import annotations

from tether.flows.repair import chained
from tether.tasks import whole

build_attach = chained("attach-all", lambda _params: [whole.AttachAll])
