class BrickException(Exception):
    pass


class VolumeDeviceNotFound(BrickException):
    pass


class VolumePathNotRemoved(BrickException):
    pass
