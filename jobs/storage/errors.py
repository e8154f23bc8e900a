"""Errors of local disks and of S3, turned into one exception whose message says what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow

_SPACE = "free some space, or choose another disk (for the cache: PATCHRAY_CACHE)"
_FOLDER = (
    "check owner, permissions and mount, or choose another folder (for the cache: PATCHRAY_CACHE)"
)
_IN_THE_WAY = "a file is where a folder is needed: remove it, or choose another name"
_BY_ERRNO = {
    errno.ENOENT: "check the path (and the bucket)",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _FOLDER,
    errno.EACCES: _FOLDER,
    errno.EPERM: _FOLDER,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: "a folder is where a file is needed: remove it, or choose another name",
}
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine an"
    " instance profile; they need to list, read, write and delete there"
)
_BY_AWS_ERROR = {
    "NO_SUCH_BUCKET": "create the bucket, or correct its name",
    "ACCESS_DENIED": _CREDENTIALS,
    "INVALID_ACCESS_KEY_ID": _CREDENTIALS,
    "SIGNATURE_DOES_NOT_MATCH": _CREDENTIALS,
    "NETWORK_CONNECTION": "check AWS_ENDPOINT_URL and the network",
}
_LASTING = ("NO_SUCH_BUCKET", "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
"""Answers of S3 that are the same the next time."""


class StorageError(OSError):
    """Storage refused; the message names the URI and the remedy.

    `errno` is the system's own reason where there is one (ENOSPC: the disk is full; ENOENT: not
    there), else None.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        """`code` becomes `errno`."""
        super().__init__(message)
        self.errno = code

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        """Errors travel from Ray's workers to the driver: OSError's own pickling loses errno."""
        return type(self), (str(self), self.errno)


def is_transient(error: OSError) -> bool:
    """Whether S3 may answer the next time: pyarrow does not repeat a read that was cut off."""
    return error.errno is None and not _aws_reason(error).startswith(_LASTING)


def explain(action: str, what: object, error: Exception) -> StorageError:
    """Say in a StorageError what storage refused, why, and what to do about it."""
    code = getattr(error, "errno", None)
    if code is not None:
        reason, remedy = os.strerror(code), _BY_ERRNO.get(code)
    else:
        reason = re.sub(r" \(Request ID:.*", "", _aws_reason(error))
        remedy = next((r for name, r in _BY_AWS_ERROR.items() if reason.startswith(name)), None)
    message = f"cannot {action} {what}: {reason}"
    return StorageError(f"{message}; {remedy}" if remedy else message, code)


def _aws_reason(error: Exception) -> str:
    """What S3 answered, beginning with its code, as in `NO_SUCH_BUCKET during ...`."""
    return str(error).rpartition("AWS Error ")[2]


@contextmanager
def explained(action: str, what: object) -> Iterator[None]:
    """Turn what pyarrow and the system raise into StorageError."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise explain(action, what, error) from error
