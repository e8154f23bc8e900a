"""The session of the page: its videos, frames, clicks, previews, tracks and masks of a run.

The methods take and return what JSON can hold, or bytes; the server passes them on. They may be
called from any thread, and may block.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.page import rows as prompt_rows
from jobs.page.arguments import read_values
from jobs.page.frames import Frames, jpeg
from jobs.page.opened import OpenVideos
from jobs.page.previews import Click, Key, Previewer
from jobs.page.review import MaskRun
from jobs.page.shapes import preview_of, prompts_of, shown_mask
from jobs.page.store import Store
from jobs.page.tracking import TrackError, Tracking, window
from jobs.page.videos import Clip
from jobs.storage.location import Location
from masking.images.arrays import Bools, Pixels
from masking.images.masks import encode_rle
from masking.manifest.plans import resolve
from masking.manifest.rows import object_faults, parse_rows, prompts
from masking.segmenter.sam import Segmenter

ENDING = 5.0
"""Seconds to wait at the end for the threads, which may be in the middle of a frame."""
AHEAD = (0, 1, -1, 2, 3, -2)
"""Frames that are encoded before they are clicked on, relative to the frame on the screen."""


class Session:
    """A manifest that is edited, with its videos and a segmenter for previews."""

    def __init__(
        self,
        store: Store,
        clips: Sequence[Clip],
        segmenter: Segmenter,
        run: MaskRun | None,
        base: Location | None = None,
    ) -> None:
        """Start a session.

        Args:
            store: the manifest.
            clips: videos of the page.
            segmenter: makes the previews.
            run: mask run to review, if any.
            base: folder that paths in the manifest are relative to; None: that of the manifest.
        """
        self.store, self.run = store, run
        self._base = base or Location.parse(store.path.parent)
        self.previewer = Previewer(segmenter)
        self._videos = OpenVideos(clips)
        self._tracks: dict[str, Tracking] = {}

    # Videos

    def videos(self) -> list[dict[str, Any]]:
        """Return what the page's list shows of each video, with the current state of the run."""
        if self.run is not None:
            self.run.refresh()
        return [self.video(video_id) for video_id in self._videos.clips]

    def video(self, video_id: str) -> dict[str, Any]:
        """Return what the page's list shows of a video."""
        clip, (rows, _) = self._videos.clip(video_id), parse_rows(self.store.rows(video_id))
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
        """Return the timestamps, in seconds, of frames from `start` on, as far as known.

        For a folder of images, also the file names of these frames.

        Raises:
            VideoError: the video cannot be read.
            ValueError: `start` is negative.
        """
        if start < 0:
            raise ValueError(f"start is {start}; expected the number of a frame, from 0")
        scan = self._frames(video_id).scan
        scan.wait(start, timeout=0.5)
        times, complete = scan.times(start)
        names = (scan.names or ())[start : start + len(times)]
        return {"times": times, "names": names, "complete": complete, "notes": scan.notes}

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
        """Return the first frame of a video as a small JPEG; raises VideoError."""
        return self._videos.thumbnail(video_id)

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
        clip, present = self._videos.clip(video_id), self.store.rows(video_id)
        after = [prompt_rows.changed_row(present, row, clip) for row in rows]
        self.store.replace(video_id, revision, after)
        return self.rows(video_id)

    def undo(self, video_id: str, revision: str, redo: bool) -> dict[str, Any]:
        """Undo, or redo, the last change of a video; returns and raises as `change`."""
        self._videos.clip(video_id)
        self.store.undo(video_id, revision, redo)
        return self.rows(video_id)

    # Masks

    def preview(
        self,
        video_id: str,
        index: int,
        version: str,
        objects: Sequence[Mapping[str, Any]],
        gone: threading.Event | None = None,
    ) -> list[dict[str, Any]]:
        """Return the masks of objects by their clicks on a frame.

        Args:
            video_id: of the video.
            index: number of the frame.
            version: of the file that the page has open.
            objects: for each object, whose mask or polygon on the frame counts, if the manifest has
                one, `object_id`; `clicks` in their order, each with x, y and label,
                or of a box x, y, x2, y2, in pixels of the first frame; and `corrects`, whether they
                correct the mask that was tracked on the frame, or that of the run.
            gone: set once nobody waits for the previews any more.

        Raises:
            CancelledError: nobody waited any more.
            ValueError: `objects` are not as described.
            PromptError: a click is outside the frame.
            VideoError: there is no such frame; with code `changed`, the file has another version.
        """
        frames = self._frames(video_id, version)
        key = (video_id, version, index)
        height, width = frames.get(index).image.shape[:2]  # the size may change in a stream
        scale = (width / frames.size[1], height / frames.size[0])
        rows = prompts_of(self.store.rows(video_id), self._base)
        found = []
        for each in objects:
            number, given = read_values(each, {"object_id": int, "clicks": list}).values()
            before = self._present_mask(video_id, index, number) if each.get("corrects") else None
            clicks = [_click(click, scale) for click in given]
            mask = None
            if any(row.is_shape for row in rows):
                mask = shown_mask(rows, frames.size, *frames.scan.times(), index, number)
            preview = (
                self.previewer.preview(key, self._image, clicks, before, gone)
                if mask is None
                else preview_of(mask, clicks, (height, width))
            )
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
        self._videos.clip(video_id)
        rows = [] if self.run is None else self.run.masks(video_id, index)
        names = ("object_id", "state", "score", "height", "width")
        return [{**{n: row[n] for n in names}, "rle": row["rle"].decode()} for row in rows]

    def track(self, video_id: str, frame: int, count: int) -> None:
        """Start to track objects over `count` frames from `frame` on; an earlier track ends.

        Raises:
            TrackError, ManifestError, VideoError: there is nothing to track.
        """
        if frame < 0 or count < 1:
            raise TrackError(f"nothing to track: {count:,} frames from frame {frame:,} on")
        frames = self._frames(video_id)
        known = frames.scan.wait(frame + count - 1)
        rows = prompts_of(self.store.rows(video_id), self._base)
        located = {
            row.object_id for row in rows if row.is_shape or row.corner or (row.xy and row.label)
        }
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
        self._videos.clip(video_id)
        track = self._tracks.get(video_id)
        return None if track is None else track.since(since)

    def cancel(self, video_id: str) -> None:
        """End the track of a video, if there is one."""
        self._videos.clip(video_id)
        if video_id in self._tracks:
            self._tracks[video_id].cancel()

    def close(self) -> None:
        """Release the manifest, and end all threads; one that hangs ends with the process."""
        self.store.close()
        deadline = time.monotonic() + ENDING
        for track in self._tracks.values():
            track.cancel()
        self._videos.close()
        self.previewer.close()
        for track in self._tracks.values():
            track.cancel(deadline)
        self._videos.close(deadline)
        self.previewer.close(deadline)

    def _present_mask(self, video_id: str, index: int, number: int) -> Bools | None:
        """Return the (H, W) mask of an object on a frame that clicks would correct."""
        track = self._tracks.get(video_id)
        mask = None if track is None else track.mask(index, number)
        if mask is None and self.run is not None:
            mask = self.run.mask(video_id, index, number)
        return mask

    def _frames(self, video_id: str, version: str | None = None) -> Frames:
        return self._videos.frames(video_id, version)

    def _image(self, key: Key) -> Pixels:
        return self._frames(key[0]).get(key[2]).image


def _click(given: Any, scale: tuple[float, float]) -> Click:
    """Return a point, or a box, of a request, in pixels of the frame."""
    across, down = scale
    if isinstance(given, Mapping) and "x2" in given:
        names = {"x": float, "y": float, "x2": float, "y2": float}
        left, top, right, bottom = read_values(given, names).values()
        return Click(left * across, top * down, 1, (right * across, bottom * down))
    x, y, label = read_values(given, {"x": float, "y": float, "label": int}).values()
    if label not in (0, 1):
        raise ValueError(f"label is {label}; expected 1 or 0")
    return Click(x * across, y * down, label)
