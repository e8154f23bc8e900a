"""Turn annotations of other tools into a manifest: boxes, polygons and masks become prompts.

    python -m jobs.convert annotations.xml --videos videos/ --out clicks.csv

SOURCE is a file of CVAT (video 1.1 in XML, or annotations.json of a backup), Label Studio (JSON) or
COCO, or a folder of YOLO's labels, of DAVIS or of YouTube-VOS. Then mask the videos:

    python -m jobs.mask --manifest clicks.csv --out runs/masks
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.converting.rows import Converted, convert
from jobs.converting.videos import Videos
from jobs.page import videos as page_videos
from jobs.page.formats import check_readable, write_records
from jobs.run.config import ConfigError, Positional
from jobs.run.main import run_job
from jobs.storage.location import Location
from masking.imports.items import Found, ImportsError
from masking.imports.read import read_annotations
from masking.manifest.faults import LISTED, ManifestError
from masking.manifest.formats.read import FORMATS, format_of


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of `jobs.convert`."""

    source: Positional[str]
    """Annotations of another tool: a local file or folder."""
    out: str
    """Manifest to write: a local .csv, .jsonl or .parquet file that does not exist yet."""
    videos: str | None = None
    """The videos: a local folder with them, a video, or a folder of images. Default: the folder of
    the annotations."""
    frames: Literal["all", "first"] = "all"
    """Which frames become prompts: all that are annotated, or the first one of each object, from
    which it is then tracked."""
    first_frame: int = 0
    """Number of the first frame in names of files, such as clip_1.txt; other frames follow it.
    Numbers inside of files are read as their tools count them."""
    skip_invalid: bool = False
    """Leave out objects with faults, and list these. Default: a fault ends the command, and nothing
    is written."""

    def __post_init__(self) -> None:
        """Check names."""
        for flag, path in (("SOURCE", self.source), ("--out", self.out), ("--videos", self.videos)):
            if path is not None and "://" in path:
                raise ConfigError(f"{flag} {path}: a local path is needed")
        if not format_of(self.out):
            raise ConfigError(
                f"--out {self.out}: expected a name that ends in {', '.join(FORMATS)}"
            )


def run(config: ConvertConfig) -> int:
    """The stages of the command, in order; returns the exit code."""
    source, out = (Path(path).expanduser().absolute() for path in (config.source, config.out))
    if out.exists():
        raise ConfigError(f"--out {out} exists; nothing is overwritten: give another name")
    if not source.exists():
        raise ConfigError(f"{source} does not exist; expected annotations of another tool")
    # 1. The videos, then the annotations.
    place = source.parent if source.is_file() else source
    clips = page_videos.find(config.videos or str(place), out, None).clips
    with Videos(clips, config.first_frame) as videos:
        found = read_annotations(source, videos.only_size())
        # 2. Rows of a manifest, checked as jobs.mask checks them.
        converted = convert(found, videos, config.frames == "first", config.skip_invalid)
    faults = [*found.faults, *converted.faults]
    if faults and not config.skip_invalid:
        raise ConfigError(_fault_list(source, faults))
    if not converted.rows:
        raise ConfigError("\n".join([f"{source}: no object was found", *faults[:LISTED]]))
    # 3. The manifest.
    columns = [*dict.fromkeys(name for row in converted.rows for name in row)]
    ending = format_of(out.name)
    try:
        check_readable(ending, columns, converted.rows, {}, sound=True)
    except ManifestError as error:
        raise ConfigError(f"{out} could not be read again:\n{error}") from error
    content = write_records(ending, columns, converted.rows, {})
    Location.parse(str(out)).write_bytes(content)
    _print_result(out, found, converted, faults)
    return 0


def _fault_list(source: Path, faults: Sequence[str]) -> str:
    more = [f"... and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
    count = f"{len(faults):,} fault{'s' * (len(faults) > 1)}"
    remedy = "Correct them, or leave out the objects concerned with --skip-invalid."
    return "\n".join(
        [f"{count} in {source}; nothing was written:", *faults[:LISTED], *more, remedy]
    )


def _print_result(out: Path, found: Found, converted: Converted, faults: Sequence[str]) -> None:
    """Print counts, what was left out, and the command that masks the videos."""
    rows = converted.rows
    objects = len({(row["uri"], row["object_id"]) for row in rows})
    frames = len({(row["uri"], row["frame"]) for row in rows})
    videos = len({row["uri"] for row in rows})
    print(
        f"{len(rows):,} prompts of {objects:,} objects on {frames:,} frames of {videos:,} videos:"
        f" {out}"
    )
    for note in converted.notes:
        print(f"  {note}")
    for kind, count in found.left_out.items():
        print(f"  left out, as no prompt is like it: {count:,} x {kind}")
    for fault in faults[:LISTED]:
        print(f"  left out: {fault}")
    if len(faults) > LISTED:
        print(f"  ... and {len(faults) - LISTED:,} more faults")
    command = ["python", "-m", "jobs.mask", "--manifest", str(out), "--out", "runs/masks"]
    print(f"  next: {shlex.join(command)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_job(run, ConvertConfig, argv, "jobs.convert", __doc__, (ImportsError,))


if __name__ == "__main__":
    sys.exit(main())
