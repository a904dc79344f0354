"""A stand-in for os_brick.exception: logs each call, and fails as it is told."""


class BrickException(Exception):
    pass


class VolumeDeviceNotFound(BrickException):
    pass


class VolumePathNotRemoved(BrickException):
    pass
