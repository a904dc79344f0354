"""A stand-in for os_brick.privileged: logs each call, and fails as it is told."""


class _Context:
    def set_client_mode(self, enabled):
        assert enabled is False


default = _Context()
brick_privsep_hide_output = _Context()
