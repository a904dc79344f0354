"""The live world's Cinder launcher, for a Cinder that is root already: no sudo, rootwrap or privsep daemon."""

from __future__ import annotations

import sys

from tests.lab.world.inside import nvmet
from tests.live.world import cinder_launcher


def main() -> None:
    """Let privileged calls run in this process, and its NVMe driver find its library; then start Cinder."""
    sys.modules["nvmet"] = nvmet
    # not above: the launcher's first line must run before any of Cinder is imported
    import cinder.privsep  # type: ignore[import-not-found]
    from os_brick import privileged

    for context in (cinder.privsep.sys_admin_pctxt, privileged.default, privileged.brick_privsep_hide_output):
        context.set_client_mode(False)
    cinder_launcher.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
