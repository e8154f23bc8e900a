"""The session of the page: its videos, frames, clicks, previews, tracks and masks of a run.

The methods take and return what JSON can hold, or bytes; the server passes them on. They may be
called from any thread, and may block.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jobs.page import rows as prompt_rows
from jobs.page.frames import Frames, VideoScan, jpeg
from jobs.page.previews import Click, Key, Previewer, WorkQueue
from jobs.page.review import MaskRun
from jobs.page.store import Store
from jobs.page.tracking import TrackError, Tracking, window
from jobs.page.videos import Clip
from jobs.storage.cache import localize
from masking.images.arrays import Bools, Pixels
from masking.images.masks import encode_rle
from masking.manifest.plans import resolve
from masking.manifest.rows import object_faults, parse_rows, prompts
from masking.segmenter.sam import Segmenter
from masking.video.frame import VideoError
from masking.video.reader import Video

OPEN = 6
"""Number of videos that are kept open."""
THUMBNAIL = 192
"""Longer side of a thumbnail, in pixels."""
AHEAD = (0, 1, -1, 2, 3, -2)
"""Frames that are encoded before they are clicked on, relative to the frame on the screen."""


class UnknownVideoError(KeyError):
    """No video has this id."""


class Session:
    """A manifest that is edited, with its videos and a segmenter for previews."""

    def __init__(
        self, store: Store, clips: Sequence[Clip], segmenter: Segmenter, run: MaskRun | None
    ) -> None:
        """Start a session.

        Args:
            store: the manifest.
            clips: videos of the page.
            segmenter: makes the previews.
            run: mask run to review, if any.
        """
        self.store, self.run = store, run
        self.previewer = Previewer(segmenter)
        self._clips = {clip.video_id: clip for clip in clips}
        self._open: OrderedDict[str, Frames] = OrderedDict()
        self._tracks: dict[str, Tracking] = {}
        self._thumbnails: dict[str, bytes] = {}
        self._thumbnail_queue = WorkQueue("thumbnails", yielding=True)
        self._lock = threading.Lock()

    # Videos

    def videos(self) -> list[dict[str, Any]]:
        """Return what the page's list shows of each video, with the current state of the run."""
        if self.run is not None:
            self.run.refresh()
        return [self.video(video_id) for video_id in self._clips]

    def video(self, video_id: str) -> dict[str, Any]:
        """Return what the page's list shows of a video."""
        clip, (rows, _) = self._clip(video_id), parse_rows(self.store.rows(video_id))
        about: dict[str, Any] = {
            "id": video_id,
            "clicks": sum(row.role not in ("accept", "end", "absent") for row in rows),
            "objects": len({row.object_id for row in rows}),
            "faults": [str(fault) for fault in object_faults(prompts(rows))],
        }
        if self.run is not None:
            about |= {
                "status": self.run.status(video_id, str(clip.place), rows),
                "spans": self.run.spans(video_id, rows),
                "failure": self.run.error(video_id),
            }
        return about

    def state(self, video_id: str) -> dict[str, Any]:
        """Open a video; returns its size in pixels, the version of its file, its rows, and the
        states of a run.

        Raises:
            VideoError: the video cannot be read.
        """
        frames = self._frames(video_id)
        height, width = frames.size
        if self.run is not None:
            self.run.refresh(video_id)
        return {
            "height": height,
            "width": width,
            "version": frames.scan.version,
            "states": {} if self.run is None else self.run.states(video_id),
            "rows": self.rows(video_id),
        }

    def timestamps(self, video_id: str, start: int) -> dict[str, Any]:
        """Return the timestamps, in seconds, of frames from `start` on, as far as known."""
        scan = self._frames(video_id).scan
        scan.wait(start, timeout=0.5)
        times, complete = scan.times(start)
        return {"times": times, "complete": complete, "notes": scan.notes}

    def frame(self, video_id: str, index: int, version: str) -> bytes:
        """Return a frame as JPEG.

        Args:
            video_id: of the video.
            index: number of the frame.
            version: of the file that the page has open.

        Raises:
            VideoError: there is no such frame; with code `changed`, the file has another version.
        """
        return jpeg(self._frames(video_id, version).get(index).image)

    def encode_ahead(self, video_id: str, index: int, version: str) -> None:
        """Encode the frame on the screen and then its neighbours, in the background.

        Raises:
            VideoError: with code `changed`, the file has another version.
        """
        scan = self._frames(video_id, version).scan
        known = len(scan.timestamps)
        near = [index + step for step in AHEAD if 0 <= index + step < known]
        keys = [(video_id, scan.version, number) for number in near]
        self.previewer.encode_ahead(keys, self._image)

    def thumbnail(self, video_id: str) -> bytes:
        """Return the first frame of a video as a small JPEG."""
        clip = self._clip(video_id)
        if video_id not in self._thumbnails:
            made = self._thumbnail_queue.submit(partial(_thumbnail, clip))
            self._thumbnails[video_id] = made.result()
        return self._thumbnails[video_id]

    # Clicks

    def rows(self, video_id: str) -> dict[str, Any]:
        """Return a video's rows, in frames and pixels, and the revision that a change must name."""
        frames = self._frames(video_id)
        records, revision = self.store.rows(video_id), self.store.revision(video_id)
        undo, redo = self.store.undo_counts(video_id)
        return {
            "revision": revision,
            "rows": prompt_rows.page_rows(records, frames.size, *frames.scan.times()),
            "undo": undo,
            "redo": redo,
            "video": self.video(video_id),
        }

    def change(
        self, video_id: str, revision: str, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Replace the rows of a video; they are on disk when it returns.

        Args:
            video_id: of the video.
            revision: of the rows that are replaced.
            rows: all rows of the video after the change. Each is a new row, in columns of the
                manifest, or a present one: `row`, its place, and the columns that change.

        Returns:
            What `rows` returns.

        Raises:
            StaleError, ManifestError, StorageError: as `Store.replace`.
        """
        clip, present = self._clip(video_id), self.store.rows(video_id)
        after = [prompt_rows.changed_row(present, row, clip) for row in rows]
        self.store.replace(video_id, revision, after)
        return self.rows(video_id)

    def undo(self, video_id: str, revision: str, redo: bool) -> dict[str, Any]:
        """Undo, or redo, the last change of a video; returns and raises as `change`."""
        self._clip(video_id)
        self.store.undo(video_id, revision, redo)
        return self.rows(video_id)

    # Masks

    def preview(
        self, video_id: str, index: int, version: str, objects: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the masks of objects by their clicks on a frame.

        Args:
            video_id: of the video.
            index: number of the frame.
            version: of the file that the page has open.
            objects: for each object `object_id`; `clicks` in their order, each with x, y and label,
                or of a box x, y, x2, y2, in pixels of the first frame; and `corrects`, whether they
                correct the mask that was tracked on the frame, or that of the run.

        Raises:
            PromptError: a click is outside the frame.
            VideoError: there is no such frame; with code `changed`, the file has another version.
        """
        frames = self._frames(video_id, version)
        key = (video_id, version, index)
        height, width = frames.get(index).image.shape[:2]  # the size may change in a stream
        scale = (width / frames.size[1], height / frames.size[0])
        found = []
        for each in objects:
            number = int(each["object_id"])
            before = self._present_mask(video_id, index, number) if each.get("corrects") else None
            clicks = [_click(click, scale) for click in each["clicks"]]
            preview = self.previewer.preview(key, self._image, clicks, before)
            if preview is not None:
                rle = encode_rle(preview.mask).decode()
                height, width = preview.mask.shape
                found.append(
                    {"object_id": number, "score": preview.score, "rle": rle, "height": height,
                     "width": width}
                )  # fmt: skip
        return found

    def masks(self, video_id: str, index: int) -> list[dict[str, Any]]:
        """Return the masks of the run on a frame, one for each object."""
        self._clip(video_id)
        rows = [] if self.run is None else self.run.masks(video_id, index)
        names = ("object_id", "state", "score", "height", "width")
        return [{**{n: row[n] for n in names}, "rle": row["rle"].decode()} for row in rows]

    def track(self, video_id: str, frame: int, count: int) -> None:
        """Start to track objects over `count` frames from `frame` on; an earlier track ends.

        Raises:
            TrackError, ManifestError, VideoError: there is nothing to track.
        """
        frames = self._frames(video_id)
        known = frames.scan.wait(frame + count - 1)
        rows = prompts(parse_rows(self.store.rows(video_id))[0])
        located = {row.object_id for row in rows if row.corner or (row.xy and row.label)}
        if not located:
            raise TrackError("nothing to track yet: click on an object first")
        usable = [row for row in rows if row.object_id in located]
        plans = resolve(usable, frames.size, *frames.scan.times())
        part = window(plans, frame, count, known)
        self.cancel(video_id)
        own = Frames(frames.scan)  # so that steps of the person do not seek in the same decoder
        self._tracks[video_id] = Tracking(own, part, frames.size, self.previewer.segmenter)

    def tracked(self, video_id: str, since: int) -> dict[str, Any] | None:
        """Return the progress of a video's track, and its frames after the first `since`.

        None: the video was not tracked.
        """
        track = self._tracks.get(video_id)
        return None if track is None else track.since(since)

    def cancel(self, video_id: str) -> None:
        """End the track of a video, if there is one."""
        if video_id in self._tracks:
            self._tracks[video_id].cancel()

    def close(self) -> None:
        """End all threads, and release the manifest."""
        self.store.close()
        for track in self._tracks.values():
            track.cancel(wait=True)
        for frames in self._open.values():
            frames.scan.close(wait=True)
        self._thumbnail_queue.close()
        self.previewer.close()

    def _present_mask(self, video_id: str, index: int, number: int) -> Bools | None:
        """Return the (H, W) mask of an object on a frame that clicks would correct."""
        track = self._tracks.get(video_id)
        mask = None if track is None else track.mask(index, number)
        if mask is None and self.run is not None:
            mask = self.run.mask(video_id, index, number)
        return mask

    def _clip(self, video_id: str) -> Clip:
        if video_id not in self._clips:
            raise UnknownVideoError(video_id)
        return self._clips[video_id]

    def _frames(self, video_id: str, version: str | None = None) -> Frames:
        """Return the frames of a video, which is opened again if its file has changed.

        Raises:
            VideoError: the video cannot be read; with code `changed`, it is not of this `version`.
        """
        clip = self._clip(video_id)
        with self._lock:
            frames = self._open.get(video_id)
            if frames is None or frames.scan.changed:
                path = localize(clip.place)
                if not path.exists():
                    raise VideoError("not_found", f"{path} does not exist")
                frames = self._open[video_id] = Frames(VideoScan(path))
                self._thumbnails.pop(video_id, None)
            self._open.move_to_end(video_id)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)[1].scan.close()
        if version not in (None, frames.scan.version):
            raise VideoError("changed", f"{video_id}: the file was replaced since it was opened")
        return frames

    def _image(self, key: Key) -> Pixels:
        return self._frames(key[0]).get(key[2]).image


def _thumbnail(clip: Clip) -> bytes:
    with Video.open(localize(clip.place)) as video:
        return jpeg(next(iter(video)).image, THUMBNAIL)


def _click(click: Mapping[str, Any], scale: tuple[float, float]) -> Click:
    x, y = float(click["x"]) * scale[0], float(click["y"]) * scale[1]
    if "x2" in click:
        return Click(x, y, 1, (float(click["x2"]) * scale[0], float(click["y2"]) * scale[1]))
    return Click(x, y, int(click["label"]))
