"""A stand-in for os_brick.exception: logs each call, and fails as it is told."""


class BrickException(Exception):
    pass


class VolumeDeviceNotFound(BrickException):
    pass


class VolumePathNotRemoved(BrickException):
    pass


class ProcessExecutionError(Exception):
    """oslo.concurrency's."""

    def __init__(self, stderr, exit_code):
        super().__init__(stderr)
        self.stderr, self.exit_code = stderr, exit_code


class ExecutionTimeout(ProcessExecutionError):
    pass


class ExceptionChainer(BrickException):
    def __init__(self):
        super().__init__()
        self._exceptions = []

    def add_exception(self, exc_type, exc_val, exc_tb):
        self._exceptions.append((exc_type, exc_val, exc_tb))
