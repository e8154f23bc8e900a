"""The parts of an s3:// URI: its bucket, its key, and pyarrow's options.

Options follow the last `?`. Keys may have question marks, too: `s3://bucket/what?.mp4` has no
option. To name a key that ends as options would, one more `?` is put behind it.
"""

import difflib
import re

from jobs.storage.errors import StorageError

OPTIONS = (
    "scheme", "endpoint_override", "region", "allow_bucket_creation", "allow_bucket_deletion",
    "allow_delayed_open", "smart_defaults", "tls_ca_file_path", "tls_ca_dir_path",
    "tls_verify_certificates",
)  # fmt: skip
"""Options of pyarrow."""


def check_text(text: str) -> None:
    """Refuse a path that neither a file system nor S3 takes; raises StorageError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"{text!a} is not in UTF-8: rename the file or folder") from error
    if "\0" in text:
        raise StorageError(f"{text!a} has the character NUL, which no path may have")


def split_s3(text: str) -> tuple[str, str, str]:
    """Return the bucket, the key and the options of an s3:// URI.

    Raises:
        StorageError: it names no bucket, has credentials, or ends in what is nearly an option.
    """
    rest = text.removeprefix("s3://")
    bucket, mark = re.match(r"([^/?]*)([/?]?)", rest).groups()  # type: ignore[union-attr]
    if "@" in bucket:
        raise StorageError(
            "an s3:// URI must not contain credentials, which would end in logs; set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
        raise StorageError(f"'{text}' names no bucket: write s3://bucket/prefix")
    key = rest[len(bucket) + 1 :]
    if mark == "?":
        return bucket, "", key
    bare = key.rstrip("?")
    if has_options(bare):
        path, _, query = bare.rpartition("?")
        return (bucket, path, query) if bare == key else (bucket, key[:-1], "")
    for name in _names(bare):
        if near := difflib.get_close_matches(name, OPTIONS, 1, 0.8):
            raise StorageError(f"'{text}' has the option {name}; perhaps you meant {near[0]}")
    return bucket, key, ""


def has_options(path: str) -> bool:
    """Return whether what follows the last `?` of a path would be read as options."""
    return bool(_names(path) & {*OPTIONS})


def _names(path: str) -> set[str]:
    """Return the names of what follows the last `?` of a path, like options, as name=value."""
    _, mark, query = path.rpartition("?")
    return {part.partition("=")[0] for part in query.split("&") if mark and "=" in part}
