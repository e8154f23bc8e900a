"""The videos of a mask run as parts of the work of `jobs.predict`."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from jobs.classifier.predictor import ObjectConfig
from jobs.masks.pairs import is_run, read_ledger
from jobs.masks.plan import state_of
from jobs.run.config import ConfigError
from jobs.storage.location import Location
from masking.outputs.crops import TRUSTED, CropConfig

_THREADS = 16  # reading the state of files at the same time


@dataclass(frozen=True)
class VideoPart:
    """A unit of work: a video of a mask run."""

    name: str
    """Name of its file of predictions, without the extension."""
    run: str
    """Folder of the mask run."""
    video_id: str
    uri: str
    """Path or s3:// address of the video."""
    content_sha256: str
    """Hash of the video that was masked."""
    masks_sha256: str
    """Hash of its masks."""
    objects: tuple[int, ...]
    """Ids of its objects."""
    count: int
    """About how many crops it has."""

    def __len__(self) -> int:
        """Return about how many crops it has."""
        return self.count

    @classmethod
    def from_json(cls, text: str) -> "VideoPart":
        """Return what `json.dumps(asdict(part))` wrote."""
        found = json.loads(text)
        return cls(**(found | {"objects": tuple(found["objects"])}))


def find_run(texts: Sequence[str]) -> Location | None:
    """Return the mask run that `--data` names; None if it names images.

    Raises:
        ConfigError: it names a mask run among others.
    """
    runs = [text for text in texts if is_run(Location.parse(text))]
    if runs and len(texts) > 1:
        raise ConfigError(
            f"--data {runs[0]} is a mask run; give it alone, without other runs or images"
        )
    return Location.parse(runs[0]) if runs else None


def plan_objects(
    place: Location, wanted: str, cutting: CropConfig, config: ObjectConfig
) -> list[VideoPart]:
    """Return the videos of a mask run that have masks.

    Args:
        place: folder of the run.
        wanted: hash of what predictions depend on beside the images.
        cutting: how objects are cut out.
        config: settings of the job for objects.

    Raises:
        ImageError: the run cannot be read.
        ConfigError: no video of it has masks.
    """
    columns = ["video_id", "uri", "status", "content_sha256", "masks_sha256", "objects"]
    rows = read_ledger(place, columns)
    good = [row for row in rows if row["status"] in ("ok", "partial")]
    if not good:
        raise ConfigError(f"--data {place}: no video of the mask run has masks")
    if len(good) < len(rows):
        print(f"{len(rows) - len(good):,} videos of the run have no masks; they are left out")
    with ThreadPoolExecutor(_THREADS) as pool:
        states = list(pool.map(lambda row: state_of(row["uri"]), good))
    parts = []
    for number, (row, state) in enumerate(zip(good, states, strict=True)):
        part = _part(place, row, config.every)
        contents = [wanted, asdict(cutting), config.every, asdict(part), state]
        key = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]
        parts.append(replace(part, name=f"part-{number:05d}-{key}"))
    return parts


def _part(place: Location, row: dict[str, Any], every: int) -> VideoPart:
    states = json.loads(row["objects"])
    frames = sum(counts.get(state, 0) for counts in states.values() for state in TRUSTED)
    return VideoPart(
        "", str(place), row["video_id"], row["uri"], row["content_sha256"], row["masks_sha256"],
        tuple(map(int, states)), -(-frames // every),
    )  # fmt: skip
