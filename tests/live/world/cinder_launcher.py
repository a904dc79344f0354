"""Cinder's scheduler, volume service and API in one process, in the order in which they need each other.

Cinder itself has no such command any more, and ``transport_url = fake://`` reaches only its own process.
"""

from cinder import monkey_patch

monkey_patch.patch()

import os
import signal
import sys
import time
import types

import eventlet
import os_brick
from cinder import i18n
from oslo_config import cfg
from oslo_log import log as logging

i18n.enable_lazy()
from cinder import coordination, objects, rpc, service, version
from cinder.common import config, constants

CONF = cfg.CONF
FAKE_RPC_PAUSE = 0.005  # seconds; oslo.messaging's in-process driver looks for messages only every 50 ms


class OneOfSeveral(service.Service):
    """``service_id`` is an attribute of the class: services of one process would all report as the last one."""

    def report_state(self):
        service.Service.service_id = self.origin_service_id
        super().report_state()


def shorten_fake_rpc():
    from oslo_messaging._drivers import impl_fake

    impl_fake.time = types.SimpleNamespace(time=time.time, sleep=lambda _seconds: time.sleep(FAKE_RPC_PAUSE))


def main():
    shorten_fake_rpc()
    objects.register_all()
    CONF(sys.argv[1:], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, "cinder")
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)
    services = [OneOfSeveral.create(binary="cinder-scheduler")]
    services += [
        OneOfSeveral.create(
            host=f"{CONF.host}@{backend}", service_name=backend, binary=constants.VOLUME_BINARY, coordination=True
        )
        for backend in CONF.enabled_backends
    ]
    services.append(service.WSGIService("osapi_volume"))
    for each in services:
        each.start()
    ended = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_arguments: ended.append(True))
    while not ended:  # short sleeps, so that a signal is seen at once
        eventlet.sleep(0.2)
    os._exit(0)  # its state is in the database


if __name__ == "__main__":
    main()
