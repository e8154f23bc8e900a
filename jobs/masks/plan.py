"""What a mask job has to do: manifests read, videos found, keys that say what is done already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jobs.storage.location import Location, StorageError
from masking.manifest.rows import Fault, ManifestError, Row, prompts
from masking.manifest.table import VideoPrompts, parse_table, read_manifest
from masking.outputs import rows as outputs
from masking.segmenter import weights as checkpoint
from masking.tracking.state import TrackConfig
from masking.video.reader import IMAGES, is_frame

ATTEMPTS_PER_VIDEO = 2
"""Times that a video may end its worker before it is let alone."""
_THREADS = 16  # that look at files at a time


@dataclass(frozen=True)
class Work:
    """A video to mask; a unit of work and of retry."""

    video_id: str
    uri: str
    """Absolute."""
    rows: tuple[Row, ...]
    extra: Mapping[str, str]
    size: int
    """Bytes: the largest go first."""
    key: str
    """Of all that its masks hang on: state of the file, prompts, weights, settings, format."""

    def to_json(self) -> str:
        """For a row of Ray Data."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Work":
        """Undo `to_json`."""
        fields = json.loads(text)
        rows = tuple(_row(row) for row in fields["rows"])
        return cls(**(fields | {"rows": rows}))


def _row(fields: dict[str, Any]) -> Row:
    pairs = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return Row(**(fields | pairs))


@dataclass(frozen=True)
class Plan:
    """All that manifests ask for."""

    work: tuple[Work, ...]
    """Sound videos, the largest first."""
    invalid: Mapping[str, tuple[str, ...]]
    """Of each other video its faults, with manifest and row."""
    unreadable: tuple[str, ...]
    """Faults of whole manifests: nobody knows which videos they name."""
    loose: tuple[str, ...]
    """Other faults that belong to no video."""
    accepted: Mapping[str, tuple[Row, ...]]
    """Of a video the rows that say that masks are right as they are. They are no prompts: nothing
    is masked anew for them."""

    @property
    def faults(self) -> list[str]:
        """All of them."""
        some = (*self.unreadable, *self.loose)
        return [*some, *(fault for faults in self.invalid.values() for fault in faults)]


def make(manifests: Sequence[str], root: str | None, settings: str) -> Plan:
    """Read manifests and look at their videos.

    Args:
        manifests: files, local or s3://.
        root: what relative uris are relative to; None: the manifest's folder.
        settings: of the job, as text that keys hang on.
    """
    asked: dict[str, tuple[str, VideoPrompts]] = {}
    invalid: dict[str, list[str]] = {}
    unreadable: list[str] = []
    loose: list[str] = []
    for manifest in manifests:
        place = Location.parse(manifest)
        sound, faulty, others, whole = _read(place)
        loose += [f"{manifest}: {fault}" for fault in others]
        unreadable += [f"{manifest}: {fault}" for fault in whole]
        for video_id, faults in faulty.items():
            invalid.setdefault(video_id, []).extend(f"{manifest}: {fault}" for fault in faults)
        for video in sound:
            try:
                uri = absolute_uri(video.uri, root, place)
            except StorageError as error:
                fault = Fault(video.rows[0].number, "uri", repr(video.uri), f"a file: {error}")
                invalid.setdefault(video.video_id, []).append(f"{manifest}: {fault}")
                continue
            if video.video_id in asked:
                earlier = asked[video.video_id][0]
                fault = Fault(
                    video.rows[0].number, "video_id", repr(video.video_id), f"not that of {earlier}"
                )
                invalid.setdefault(video.video_id, []).append(f"{manifest}: {fault}")
            asked.setdefault(video.video_id, (manifest, replace(video, uri=uri)))
    with ThreadPoolExecutor(_THREADS) as pool:
        states = list(pool.map(lambda pair: state_of(pair[1].uri), asked.values()))
    work = []
    accepted = {
        video.video_id: tuple(row for row in video.rows if row.role == "accept")
        for _, video in asked.values()
    }
    for (manifest, video), state in zip(asked.values(), states, strict=True):
        if isinstance(state, str):
            fault = Fault(
                video.rows[0].number, "uri", repr(video.uri), "a file or folder: " + state
            )
            invalid.setdefault(video.video_id, []).append(f"{manifest}: {fault}")
        elif video.video_id not in invalid:
            rows = prompts(video.rows)
            key = key_of(settings, state, rows)
            size = sum(part[1] for part in state)
            work.append(Work(video.video_id, video.uri, rows, video.extra, size, key))
    work.sort(key=lambda one: (-one.size, one.video_id))
    named = {video_id: tuple(faults) for video_id, faults in invalid.items()}
    return Plan(tuple(work), named, tuple(unreadable), tuple(loose), accepted)


def _read(
    manifest: Location,
) -> tuple[list[VideoPrompts], Mapping[str, Sequence[Fault]], list[Fault], list[Fault]]:
    """As `read_manifest`, of a file; and faults that make nothing of it readable."""
    try:
        sound, faulty, loose = read_manifest(parse_table(manifest.name, manifest.read_bytes()))
    except ManifestError as error:
        return [], {}, [], list(error.faults)
    whole = [fault for fault in loose if not fault.row]
    return sound, faulty, [fault for fault in loose if fault.row], whole


def is_accepted(rows: Sequence[Row], span: Mapping[str, Any]) -> bool:
    """Whether one of a video's accepts speaks of all frames of a span of review.csv."""
    return any(
        row.role == "accept"
        and row.object_id == span["object_id"]
        and row.frame is not None
        and row.frame <= span["first_frame"]
        and span["last_frame"] <= (row.frame if row.until is None else row.until)
        for row in rows
    )


def absolute_uri(uri: str, root: str | None, manifest: Location) -> str:
    """Where a video lies, by its manifest and the root that relative uris are meant from."""
    if "://" in uri or uri.startswith(("/", "~/")):
        return str(Location.parse(uri))
    base = Location.parse(root) if root is not None else manifest.parent
    if not base.is_s3:  # ../videos is a usual thing to write
        return str(Path(base.path, uri).resolve())
    return str(base / uri)


def state_of(uri: str) -> list[tuple[str, int, int]] | str:
    """Names, sizes and times of a video's file, or of a folder's frames; or why there are none."""
    try:
        files = Location.parse(uri).walk()
    except StorageError as error:
        return str(error)
    if not files:
        return "there is none"
    state = [
        (file.path, file.size, file.mtime_ns)
        for file in files
        if not file.path or ("/" not in file.path and is_frame(file.path))
    ]
    return state or f"it is a folder without images ({', '.join(IMAGES)} are read)"


def key_of(settings: str, state: Sequence[tuple[str, int, int]], rows: Sequence[Row]) -> str:
    """The key of a video: of `settings_of`, of `state_of`, and of its `prompts`."""
    asked = [asdict(replace(row, number=0)) for row in rows]
    for row in asked:
        del row["until"], row["name"]  # of accepts alone; and what no mask hangs on
    text = json.dumps([outputs.FORMAT, settings, state, asked])
    return hashlib.sha256(text.encode()).hexdigest()


def settings_of(weights: Path, precision: str, config: TrackConfig) -> str:
    """What all masks of a job hang on beside their video and prompts.

    Raises:
        CheckpointError: weights that cannot be read.
    """
    tensors, metadata = checkpoint.read(checkpoint.find(weights))
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return json.dumps([digest.hexdigest(), precision, asdict(config)])
