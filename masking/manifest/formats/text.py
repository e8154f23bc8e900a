"""The text in the bytes of a file, whatever program wrote it."""

import codecs

from masking.manifest.faults import Fault, ManifestError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another ZIP archive"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook of the old kind"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"version https://git-lfs", "a pointer of Git LFS; `git lfs pull` gets the file"),
)
_SHOWN = 60  # characters of a line in a message


def decode(name: str, content: bytes) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 where its first bytes show it.

    Other encodings are refused: which one it is cannot be known for certain, and a wrong guess
    would change names.

    Args:
        name: name of the file, for messages.
        content: bytes of the file.

    Raises:
        ManifestError: it is no text in one of these.
    """
    for start, what in _OTHER_FILES:
        if content.startswith(start):
            raise ManifestError([Fault(0, name, what, "text in UTF-8, as CSV or JSON lines")])
    codec = next((codec for mark, codec in _MARKS if content.startswith(mark)), None)
    if codec is None and content[:1] and not content[1:2].strip(b"\0"):
        codec = "utf-16-le" if content[3:4] == b"\0" else None
    elif codec is None and content[:1] == b"\0" and content[2:3] == b"\0":
        codec = "utf-16-be"
    try:
        return content.decode(codec or "utf-8")
    except UnicodeDecodeError as error:
        if codec is not None and not codec.startswith("utf-8"):
            value = f"damaged: it begins as {codec.upper()}, but {error.reason}"
            raise ManifestError([Fault(0, name, value, "a whole file")]) from error
        raise ManifestError([_not_utf8(name, content, error)]) from error


def _not_utf8(name: str, content: bytes, error: UnicodeDecodeError) -> Fault:
    """Return the fault of a text of another encoding: its first such place, as Windows reads it."""
    line = content.count(b"\n", 0, error.start) + 1
    first = max(content.rfind(b"\n", 0, error.start) + 1, error.start - _SHOWN)
    shown = content[first : error.start + _SHOWN].split(b"\n")[0].decode("cp1252", "replace")
    value = (
        f"not in UTF-8: line {line} has the byte 0x{content[error.start]:02x}"
        f" (in Windows-1252 it is {shown.strip()!r})"
    )
    return Fault(0, name, value, "UTF-8; in Excel, save it as CSV UTF-8")
