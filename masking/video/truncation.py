"""Detection of video files that are shorter than their header says, as after a failed upload."""

from pathlib import Path


def missing_bytes(path: Path) -> int:
    """Return by how many bytes a file is shorter than its header says, as after a failed upload.

    FFmpeg only logs this, or does not notice where it skips the missing part. Works for Matroska
    and WebM, MP4 and QuickTime, AVI; 0 for all others.
    """
    with path.open("rb") as stream:
        head = stream.read(4096)
        size = path.stat().st_size
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            return max(0, _matroska_end(head) - size)
        following = {b"RIFF": _riff_chunk}.get(head[:4])
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            following = _iso_box
        at = 0
        while following is not None and at < size:
            stream.seek(at)
            length = following(stream.read(16))
            if length == 0:  # it reaches to the end, or is no part of the container
                return 0
            at += length
    return max(0, at - size)


def _matroska_end(head: bytes) -> int:
    """Return the end of the segment, 0 if unknown. RFC 8794: an element is its id, its length, and
    its content; the length takes one byte more than its first byte has leading zeros, and is all
    ones in a live stream, where it is unknown."""
    at = head.find(b"\x18\x53\x80\x67") + 4  # the segment, which holds everything that follows
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[at : at + width], "big") & unknown
    return 0 if length == unknown else at + width + length


def _iso_box(head: bytes) -> int:
    """Return the length of a box, 0 if unknown. ISO 14496-12, 4.2: a length and a name, then the
    length again if it takes 64 bits."""
    length, name = int.from_bytes(head[:4], "big"), head[4:8]
    if len(name) < 4 or not name.isascii() or not name.decode().isprintable():
        return 0
    if length == 1 and len(head) == 16:
        length = int.from_bytes(head[8:], "big")
    return length if length >= 8 else 0


def _riff_chunk(head: bytes) -> int:
    """Return the length of a chunk, 0 if unknown. An AVI file is one chunk; more of them follow
    beyond a gigabyte."""
    length = int.from_bytes(head[4:8], "little")
    known = head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX")
    return 8 + length + length % 2 if known and 0 < length < (1 << 32) - 1 else 0
