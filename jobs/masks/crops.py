"""Exports the objects of masked videos as a data set of labelled images, for `jobs.train`."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.masks.folder import fetch_video, file_name
from jobs.storage import scratch
from jobs.storage.location import Location
from masking.images.arrays import Pixels
from masking.outputs.crops import TRUSTED, Crop, CropConfig, crops, trusted_rows
from masking.video.reader import Video
from vit.data.reader import CROPS, SPLITS, normal, split_groups
from vit.data.walk import is_hidden

FORMAT = 1
"""Version of patchray_crops.json and of the columns."""
QUALITY = 95
"""Quality of JPEGs, up to 100."""
_GROUP = 256
"""Images of a row group, which are held in memory before they are written."""
_SCHEMA = pa.schema(
    [
        ("image", pa.binary()), ("label", pa.string()), ("video_id", pa.string()),
        ("frame", pa.int32()), ("object_id", pa.int32()),
    ]
)  # fmt: skip
_LONGEST_NAME = 255  # bytes of a folder's name on common disks


@dataclass(frozen=True)
class CropExportConfig(CropConfig):
    """Settings of `--export crops`."""

    every: int = 5
    """Objects are cut out of the frames 0, n, 2n, ...; neighbouring frames differ little."""
    layout: Literal["parquet", "folder"] = "parquet"
    """parquet: a shard per video with columns image, label, video_id, frame and object_id; folder:
    an image file per object and frame, in a folder for each set and each object_name."""
    val_share: float = 0.15
    """Share of the images of each name for validation. Sets consist of whole videos, so that no
    object is in two of them; a name that is in one video only is in the training set."""
    test_share: float = 0.15
    """Share of the images of each name for the test set."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"crops.every is {self.every}; at least 1 is needed")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise ValueError(
                f"crops.val_share is {self.val_share:g} and crops.test_share {self.test_share:g};"
                " neither may be below 0, and together they must be below 1"
            )

    @property
    def cutting(self) -> dict[str, Any]:
        """The settings of `CropConfig` alone: those that a classifier of the crops depends on."""
        return {item.name: getattr(self, item.name) for item in fields(CropConfig)}


@dataclass(frozen=True)
class VideoCrops:
    """What is exported of one video."""

    split: str
    """The set that it is in: train, val or test."""
    names: Mapping[int, str]
    """Names of its objects by id; objects without a name are left out."""
    config: CropExportConfig

    def to_json(self) -> dict[str, Any]:
        """Return it as a value of JSON, for a row of Ray Data."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "VideoCrops":
        """Return what `to_json` wrote."""
        names = {int(number): name for number, name in found["names"].items()}
        return cls(found["split"], names, CropExportConfig(**found["config"]))


def crop_faults(names: Iterable[str], config: CropExportConfig) -> list[str]:
    """Return a message for each name of an object that `--export crops` cannot use.

    Args:
        names: names of the objects of all videos.
        config: settings of the export.
    """
    known = sorted(set(map(normal, names)))
    if not known:
        return [
            "--export crops: no object has a name, which would be its class; add a column"
            " object_name to the manifest"
        ]
    if config.layout == "parquet":
        return []
    return [
        f"--export crops: object_name {name!r:.300} cannot be the name of a folder; rename the"
        " object, or use --crops.layout parquet"
        for name in known
        if "/" in name or "\0" in name or is_hidden(name) or len(name.encode()) > _LONGEST_NAME
    ]


def plan_crops(
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, Mapping[int, str]],
    config: CropExportConfig,
    seed: int,
) -> dict[str, VideoCrops]:
    """Choose the set of each video; returns what is exported of each, by its id.

    Args:
        records: of the masked videos; they have the number of frames in each state.
        names: names of the objects of each video, by video and object id.
        config: settings of the export.
        seed: seed of the choice.
    """
    counts: dict[str, Counter[str]] = {}
    for record in records:
        here = counts.setdefault(record["video_id"], Counter())
        for number, states in record["objects"].items():
            name = names.get(record["video_id"], {}).get(int(number))
            if name:
                here[normal(name)] += sum(states.get(state, 0) for state in TRUSTED)
    counts = {video_id: here for video_id, here in counts.items() if here.total()}
    val = split_groups(counts, config.val_share, "val", seed)
    rest = {video_id: here for video_id, here in counts.items() if video_id not in val}
    test = split_groups(rest, config.test_share / (1 - config.val_share), "test", seed)
    return {
        video_id: VideoCrops(
            "val" if video_id in val else "test" if video_id in test else "train",
            {number: normal(name) for number, name in names[video_id].items()},
            config,
        )
        for video_id in counts
    }


def export_crops(
    out: Location, record: Mapping[str, Any], table: pa.Table, wanted: VideoCrops
) -> dict[str, int]:
    """Write the crops of a video; returns their number by the names of the objects.

    Args:
        out: folder of the run.
        record: of the video.
        table: its masks.
        wanted: what is exported of it.

    Raises:
        OSError, VideoError: the video cannot be read, or is not the one that was masked.
    """
    rows = trusted_rows(table, wanted.config.every)
    named = [row in wanted.names for row in rows["object_id"].to_pylist()]
    rows = rows.filter(pa.array(named, pa.bool_()))
    counts = Counter(wanted.names[number] for number in rows["object_id"].to_pylist())
    if not counts:
        return {}
    with scratch.folder() as folder:
        with Video.open(fetch_video(record, folder)) as video:
            found = crops(video, rows, wanted.config)
            write = _write_shard if wanted.config.layout == "parquet" else _write_images
            write(folder / "crops", found, record["video_id"], wanted)
        place = out / "export/crops"
        if wanted.config.layout == "parquet":
            place = place / f"{wanted.split}-{file_name(record['video_id'])}.parquet"
        place.upload(folder / "crops")
    return dict(counts)


def _write_shard(path: Path, found: Iterator[Crop], video_id: str, wanted: VideoCrops) -> None:
    schema = _SCHEMA.with_metadata({CROPS: json.dumps(wanted.config.cutting)})
    with pq.ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []
        for crop in found:
            rows.append(
                {
                    "image": encoded(crop.image),
                    "label": wanted.names[crop.object_id],
                    "video_id": video_id,
                    "frame": crop.frame,
                    "object_id": crop.object_id,
                }
            )
            if len(rows) == _GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_images(folder: Path, found: Iterator[Crop], video_id: str, wanted: VideoCrops) -> None:
    ending = "png" if wanted.config.background == "transparent" else "jpg"
    video = file_name(video_id)
    if is_hidden(video):  # no reader of image folders would enter it
        video = f"%{ord(video[0]):02X}{video[1:]}"
    for crop in found:
        name = wanted.names[crop.object_id]
        place = folder / wanted.split / name / video / str(crop.object_id)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{crop.frame:05d}.{ending}").write_bytes(encoded(crop.image))


def encoded(image: Pixels) -> bytes:
    """Return a crop as a file: JPEG, or PNG if it has alpha."""
    content = io.BytesIO()
    form = "png" if image.shape[2] == 4 else "jpeg"
    Image.fromarray(image).save(content, form, **({} if form == "png" else {"quality": QUALITY}))
    return content.getvalue()


def conclude_crops(
    out: Location,
    config: CropExportConfig,
    planned: Mapping[str, VideoCrops],
    made: Mapping[str, Mapping[str, int]],
    unnamed: int,
) -> list[str]:
    """Write patchray_crops.json, the last file of the data set; returns lines about it for people.

    Args:
        out: folder of the run.
        config: settings of the export.
        planned: what was to be exported of each video.
        made: number of crops of each video by the names of its objects.
        unnamed: number of objects of all videos that have no name.
    """
    sets: dict[str, Counter[str]] = {each: Counter() for each in SPLITS}
    for video_id, counts in made.items():
        sets[planned[video_id].split].update(counts)
    about = {
        "format": FORMAT,
        "crops": config.cutting,
        "every": config.every,
        "sets": {each: dict(sorted(counts.items())) for each, counts in sets.items()},
        "videos": {video_id: planned[video_id].split for video_id in sorted(made)},
    }
    (out / "export/crops" / f"{CROPS}.json").write_json(about)
    names = sorted(set().union(*sets.values()))
    lines = [
        "crops: "
        + ", ".join(f"{counts.total():,} {each}" for each, counts in sets.items())
        + f"; {len(names)} names ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"
    ]
    if unnamed:
        lines.append(f"crops: {unnamed:,} objects without an object_name are left out")
    for each in ("val", "test"):
        lacking = [name for name in names if not sets[each][name]]
        share = config.val_share if each == "val" else config.test_share
        if lacking and share:
            shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            lines.append(f"crops: too few videos for {each} images of {shown}")
    return lines
