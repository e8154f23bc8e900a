"""A manifest file: CSV, JSON lines or Parquet, by the ending of its name."""

from masking.manifest.faults import Fault, ManifestError
from masking.manifest.formats import delimited, json_lines, parquet
from masking.manifest.formats.text import decode
from masking.manifest.records import Table

FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")
"""Endings of manifests, in small letters; capitals mean the same."""


def format_of(name: str) -> str:
    """Return the ending of a manifest's name, in small letters; empty if it is none of them."""
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), "")


def parse_table(name: str, content: bytes) -> Table:
    """Turn the bytes of a manifest into a table.

    Args:
        name: name of the file, which says by its ending what it is: .csv, .jsonl (.ndjson) or
            .parquet. A line of JSON is a row, or a video with its rows in a list `prompts`.
        content: content of the file.

    Raises:
        ManifestError: the content is not of that kind, is larger than a manifest may be, or has a
            column twice or nearly right.
    """
    ending = format_of(name)
    if not ending:
        expected = ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"
        raise ManifestError([Fault(0, name, "of an unknown kind", expected)])
    if ending == ".csv":
        return delimited.read(decode(name, content))
    if ending != ".parquet":
        return json_lines.read(decode(name, content), len(content))
    try:
        return parquet.read(content)
    except ManifestError:
        raise
    except Exception as error:  # pyarrow raises all kinds
        raise ManifestError([Fault(0, name, f"unreadable: {error}", "a Parquet table")]) from error
