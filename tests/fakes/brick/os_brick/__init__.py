"""Stands in for os-brick: makes and removes files of a pretend host, as the real one does devices.

The tree is FAKE_BRICK_DIR. `calls` there gets a line per call, `loads` one per import; `behave.json` there tells a
call to go wrong: {"connect": ["hang"]} and so on, used up one by one.
"""

from oslo_config import cfg

cfg.CONF.register_opts([cfg.StrOpt("lock_path")], group="os_brick")


def setup(conf):
    assert conf.oslo_concurrency.lock_path
