"""The plan of a mask job: reads its manifests, finds their videos and computes their keys."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from jobs.storage.errors import explain
from jobs.storage.location import Location, StorageError
from jobs.weights.files import fingerprint
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.formats.read import parse_table
from masking.manifest.rows import Row, prompts, with_pictures
from masking.manifest.table import VideoPrompts, read_manifest
from masking.outputs import rows as outputs
from masking.outputs.polish import OFF, PolishConfig
from masking.sam2 import weights as checkpoint
from masking.tracking.state import TrackConfig
from masking.video.folder import frames_among, list_frames
from masking.video.frame import VideoError

_THREADS = 16  # reading the state of files at the same time


@dataclass(frozen=True)
class VideoWork:
    """A video to mask: the unit of work and of retry."""

    video_id: str
    uri: str
    """Absolute path or s3:// address of the video."""
    rows: tuple[Row, ...]
    """Prompts of the video; rows of role `accept` are left out."""
    extra: Mapping[str, str]
    """Columns of the manifest that Patchray does not know, from the video's first row."""
    size: int
    """Bytes of the video; the largest videos are masked first."""
    key: str
    """Hash of everything that the masks depend on: state of the file, prompts, weights, settings
    and format."""

    def to_json(self) -> str:
        """Return the work as JSON, for a row of Ray Data."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "VideoWork":
        """Return the work that `to_json` wrote."""
        fields = json.loads(text)
        rows = tuple(_row_from_json(row) for row in fields["rows"])
        return cls(**(fields | {"rows": rows}))


def _row_from_json(fields: dict[str, Any]) -> Row:
    pairs = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return Row(**(fields | pairs))


@dataclass(frozen=True)
class BatchPlan:
    """Everything that the manifests of a job request."""

    work: tuple[VideoWork, ...]
    """Videos without faults, the largest first."""
    invalid: Mapping[str, tuple[str, ...]]
    """Faults of each other video, by its id; each fault names its manifest and row."""
    unreadable: tuple[str, ...]
    """Faults of manifests that cannot be read at all, so that their videos are unknown."""
    loose: tuple[str, ...]
    """Faults of rows that belong to no video."""
    accepted: Mapping[str, tuple[Row, ...]]
    """Rows of role `accept` of each video, by its id. They are no prompts: a video is not masked
    again because of them."""

    @property
    def faults(self) -> list[str]:
        """All faults, as text."""
        some = (*self.unreadable, *self.loose)
        return [*some, *(fault for faults in self.invalid.values() for fault in faults)]


def plan_batch(manifests: Sequence[str], root: str | None, settings: str) -> BatchPlan:
    """Read manifests and the state of their videos' files.

    Args:
        manifests: paths or s3:// addresses of manifests.
        root: folder that relative uris are resolved against; None: the manifest's folder.
        settings: the text that `settings_of` returns for the job.
    """
    reader = _ManifestReader(root)
    for manifest in manifests:
        reader.read(manifest)
    videos, invalid = reader.videos, reader.invalid
    with ThreadPoolExecutor(_THREADS) as pool:
        states = list(pool.map(lambda pair: state_of(pair[1].uri), videos.values()))
    work = []
    for (manifest, video), state in zip(videos.values(), states, strict=True):
        if isinstance(state, str):
            reader.add_fault(manifest, video, "uri", video.uri, f"a file or folder: {state}")
        elif video.video_id not in invalid:
            rows = reader.with_pictures(manifest, video)
            if video.video_id not in invalid:
                key = key_of(settings, state, rows)
                size = sum(part[1] for part in state)
                work.append(VideoWork(video.video_id, video.uri, rows, video.extra, size, key))
    return BatchPlan(
        work=tuple(sorted(work, key=lambda one: (-one.size, one.video_id))),
        invalid={video_id: tuple(faults) for video_id, faults in invalid.items()},
        unreadable=tuple(reader.unreadable),
        loose=tuple(reader.loose),
        accepted={
            video.video_id: tuple(row for row in video.rows if row.role == "accept")
            for _, video in videos.values()
        },
    )


class _ManifestReader:
    """Collects the videos and the faults of several manifests; fields as in `BatchPlan`."""

    def __init__(self, root: str | None) -> None:
        self._root = root
        self.videos: dict[str, tuple[str, VideoPrompts]] = {}  # with the manifest that came first
        self.invalid: dict[str, list[str]] = {}
        self.unreadable: list[str] = []
        self.loose: list[str] = []

    def read(self, manifest: str) -> None:
        place = Location.parse(manifest)
        try:
            table = parse_table(place.name, place.read_bytes())
            sound, faulty, loose = read_manifest(table)
        except ManifestError as error:
            self.unreadable += [f"{manifest}: {fault}" for fault in error.faults]
            return
        for fault in loose:  # row 0 is the whole table
            (self.loose if fault.row else self.unreadable).append(f"{manifest}: {fault}")
        for video_id, faults in faulty.items():
            self.invalid.setdefault(video_id, []).extend(f"{manifest}: {fault}" for fault in faults)
        for video in sound:
            self._add(manifest, place, video)

    def _add(self, manifest: str, place: Location, video: VideoPrompts) -> None:
        try:
            uri = absolute_uri(video.uri, self._root, place)
        except StorageError as error:
            self.add_fault(manifest, video, "uri", video.uri, f"a file: {error}")
            return
        if video.video_id in self.videos:
            expected = (
                f"an id that {self.videos[video.video_id][0]} does not contain; a column video_id"
                " can give another one"
            )
            self.add_fault(manifest, video, "video_id", video.video_id, expected)
        self.videos.setdefault(video.video_id, (manifest, replace(video, uri=uri)))

    def with_pictures(self, manifest: str, video: VideoPrompts) -> tuple[Row, ...]:
        """Return the prompts of a video, with the masks that are pictures as run lengths; pictures
        that cannot be read are faults of the video."""
        place, faults = Location.parse(manifest), list[Fault]()

        def read(name: str) -> bytes:
            return Location.parse(absolute_uri(name, self._root, place)).read_bytes()

        rows = with_pictures(prompts(video.rows), read, faults)
        for fault in faults:
            self.invalid.setdefault(video.video_id, []).append(f"{manifest}: {fault}")
        return rows

    def add_fault(
        self, manifest: str, video: VideoPrompts, column: str, value: str, expected: str
    ) -> None:
        fault = Fault(video.rows[0].number, column, repr(value), expected)
        self.invalid.setdefault(video.video_id, []).append(f"{manifest}: {fault}")


def is_accepted(rows: Sequence[Row], span: Mapping[str, Any]) -> bool:
    """Return whether an accept among a video's rows covers all frames of a span of review.csv."""
    return any(
        row.role == "accept"
        and row.object_id == span["object_id"]
        and row.frame is not None
        and row.frame <= span["first_frame"]
        and span["last_frame"] <= (row.frame if row.until is None else row.until)
        for row in rows
    )


def absolute_uri(uri: str, root: str | None, manifest: Location) -> str:
    """Return the absolute path or s3:// address of a video.

    Args:
        uri: as the manifest has it.
        root: folder that a relative uri is resolved against; None: the manifest's folder.
        manifest: the manifest.

    Raises:
        StorageError: a uri of a scheme that is not supported or with options for S3, which would
            say to whom credentials are sent; a link that leads to itself.
    """
    if "://" in uri or uri.startswith(("/", "~/")):
        place = Location.parse(uri)
        if place.query:
            raise StorageError(
                f"the options {place.query!r} are not read from a manifest; set AWS_ENDPOINT_URL"
                " and the other AWS variables, or write uris relative to a --root with the options"
            )
        return str(place)
    base = Location.parse(root) if root is not None else manifest.parent
    if not base.is_s3:  # resolves ../videos, which is common
        try:
            return str(Path(base.path, uri).resolve())
        except (OSError, RuntimeError) as error:  # a link to itself
            raise StorageError(f"{uri} cannot be resolved: {error}") from error
    return str(base / uri)


def state_of(uri: str) -> list[tuple[str, int, int]] | str:
    """Return the state of a video's files, which differs if the video has changed.

    Returns:
        Path, bytes and modification time in ns of the video's file, or of each frame of a folder;
        a message instead if there is nothing to read.
    """
    try:
        place = Location.parse(uri)
        path = place.local_path
        if path is not None and path.is_dir():
            found = [(file.name, file.stat()) for file in list_frames(path)[0]]
            return sorted((name, about.st_size, about.st_mtime_ns) for name, about in found)
        below = {file.path: file for file in place.walk()}
        if not below:
            return "it does not exist"
        files = {name: file for name, file in below.items() if "/" not in name}
        names = [""] if "" in files else frames_among(files)[0]
    except (StorageError, VideoError) as error:
        return str(error)
    except OSError as error:
        return str(explain("read", uri, error))
    return [(name, files[name].size, files[name].mtime_ns) for name in sorted(names)]


def frame_names(uri: str) -> list[str]:
    """Return the names of the files of a folder's frames, in order.

    Raises:
        StorageError: the folder cannot be read.
        VideoError: it is no folder of frames.
    """
    place = Location.parse(uri)
    if place.local_path is not None:
        return [file.name for file in list_frames(place.local_path)[0]]
    return frames_among(entry.name for entry in place.list() if not entry.is_folder)[0]


def key_of(settings: str, state: Sequence[tuple[str, int, int]], rows: Sequence[Row]) -> str:
    """Return the key of a video: a hash of all that its masks depend on.

    Args:
        settings: the text that `settings_of` returns.
        state: what `state_of` returns for the video.
        rows: prompts of the video; their row numbers do not matter.
    """
    fields = [asdict(replace(row, number=0)) for row in rows]
    for row in fields:
        del row["until"], row["name"]  # no mask depends on them
        for kind in ("polygon", "mask"):
            if row[kind] is None:  # so that keys of runs without them stay what they were
                del row[kind]
    text = json.dumps([outputs.FORMAT, settings, state, fields])
    return hashlib.sha256(text.encode()).hexdigest()


def settings_of(
    weights: Path, precision: str, config: TrackConfig, polish: PolishConfig = OFF
) -> str:
    """Return what all masks of a job depend on beside their video and prompts, as JSON.

    Raises:
        SegmenterWeightsError: the weights cannot be read.
    """
    found = checkpoint.read(weights)
    header = json.dumps(sorted(found.metadata.items()))
    weights_hash = fingerprint(header, found.tensors, shapes=True)
    # Under their first names, which the keys of earlier runs were computed from.
    track = {
        item.metadata.get("was", item.name): getattr(config, item.name) for item in fields(config)
    }
    # Without polish the keys of earlier runs stay what they were.
    polished = [] if polish == OFF else [asdict(polish)]
    return json.dumps([weights_hash, precision, track, *polished])
