"""A stand-in for os_brick.privileged.rootwrap: runs a command as often and as long as it is told to."""

import subprocess

from os_brick import exception


def execute(*words, attempts=1, timeout=600, **_options):
    for _ in range(attempts):
        try:
            ended = subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            error = exception.ExecutionTimeout(
                f"Time out after waiting {timeout} seconds when running {words[0]}", None
            )
        else:
            if ended.returncode == 0:
                return ended.stdout, ended.stderr
            error = exception.ProcessExecutionError(ended.stderr, ended.returncode)
    raise error
