"""What the page can ask for and change: videos, frames, clicks, previews, tracks, a run's masks.

Everything here is a plain method that takes and gives what JSON can hold, or bytes; the server
only passes it on. Methods may be called from any thread, and may wait.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jobs.page import rows as prompt_rows
from jobs.page.frames import Frames, Survey, jpeg
from jobs.page.previews import Click, Key, Line, Previewer
from jobs.page.review import Run
from jobs.page.store import Store
from jobs.page.tracking import TrackError, Tracking, window
from jobs.page.videos import Clip
from jobs.storage.cache import localize
from masking.images.arrays import Bools, Pixels
from masking.images.masks import encode_rle
from masking.manifest.rows import object_faults, parse_rows, prompts, resolve
from masking.segmenter.sam import Segmenter
from masking.video.reader import Video, VideoError

OPEN = 6
"""Videos that are held open."""
THUMBNAIL = 192
"""Pixels of the longer side."""
AHEAD = (0, 1, -1, 2, 3, -2)
"""Frames that are encoded before they are clicked on, from the one that is looked at."""


class UnknownVideoError(KeyError):
    """An id that is not among the videos."""


class Session:
    """A manifest, its videos, and a segmenter."""

    def __init__(
        self, store: Store, clips: Sequence[Clip], segmenter: Segmenter, run: Run | None
    ) -> None:
        """Take what is ready; `run` is a mask run to look through."""
        self.store, self.run = store, run
        self.previewer = Previewer(segmenter)
        self._clips = {clip.video_id: clip for clip in clips}
        self._open: OrderedDict[str, Frames] = OrderedDict()
        self._tracks: dict[str, Tracking] = {}
        self._thumbnails: dict[str, bytes] = {}
        self._aside = Line("thumbnails", yielding=True)
        self._lock = threading.Lock()

    # Videos

    def videos(self) -> list[dict[str, Any]]:
        """All videos, with what is clicked in each, and how a run has left it by now."""
        if self.run is not None:
            self.run.refresh()
        return [self.video(video_id) for video_id in self._clips]

    def video(self, video_id: str) -> dict[str, Any]:
        """What the list says of a video."""
        clip, (rows, _) = self._clip(video_id), parse_rows(self.store.rows(video_id))
        about: dict[str, Any] = {
            "id": video_id,
            "clicks": sum(row.role not in ("accept", "end", "absent") for row in rows),
            "objects": len({row.object_id for row in rows}),
            "faults": [str(fault) for fault in object_faults(prompts(rows))],
        }
        if self.run is not None:
            about |= {
                "standing": self.run.standing(video_id, str(clip.place), rows),
                "spans": self.run.spans(video_id, rows),
                "failure": self.run.error(video_id),
            }
        return about

    def state(self, video_id: str) -> dict[str, Any]:
        """A video as it is opened: its size, its frames so far, its rows.

        Raises:
            VideoError: it cannot be read.
        """
        frames = self._frames(video_id)
        height, width = frames.size
        if self.run is not None:
            self.run.refresh(video_id)
        return {
            "height": height,
            "width": width,
            "version": frames.survey.version,
            "states": {} if self.run is None else self.run.states(video_id),
            "rows": self.rows(video_id),
        }

    def moments(self, video_id: str, start: int) -> dict[str, Any]:
        """Seconds of the frames from `start` on that are known so far, and whether it is all."""
        survey = self._frames(video_id).survey
        survey.wait(start, timeout=0.5)
        times, complete = survey.times(start)
        return {"times": times, "complete": complete, "notes": survey.notes}

    def frame(self, video_id: str, index: int, version: str) -> bytes:
        """A frame of one version of the file, as JPEG.

        Raises:
            VideoError: there is no such frame; `changed`: the file is another one by now.
        """
        return jpeg(self._frames(video_id, version).get(index).image)

    def look(self, video_id: str, index: int, version: str) -> None:
        """Say that a person looks at a frame: it is encoded, and then its neighbours.

        Raises:
            VideoError: `changed`: the file is another one by now.
        """
        survey = self._frames(video_id, version).survey
        known = len(survey.moments)
        near = [index + step for step in AHEAD if 0 <= index + step < known]
        self.previewer.look([(video_id, survey.version, number) for number in near], self._image)

    def thumbnail(self, video_id: str) -> bytes:
        """The first frame as a small JPEG."""
        clip = self._clip(video_id)
        if video_id not in self._thumbnails:
            self._thumbnails[video_id] = self._aside.submit(partial(_thumbnail, clip)).result()
        return self._thumbnails[video_id]

    # Clicks

    def rows(self, video_id: str) -> dict[str, Any]:
        """A video's rows, in frames and pixels, under the revision that a change has to name."""
        frames = self._frames(video_id)
        records, revision = self.store.rows(video_id), self.store.revision(video_id)
        done, undone = self.store.steps(video_id)
        return {
            "revision": revision,
            "rows": prompt_rows.shown(records, frames.size, *frames.survey.times()),
            "undo": done,
            "redo": undone,
            "video": self.video(video_id),
        }

    def change(
        self, video_id: str, revision: str, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Give a video other rows; they are on disk when it returns.

        Args:
            video_id: of the video.
            revision: of the rows that this is a change of.
            rows: each a new row in the manifest's columns; or `row`, the number of a present one
                that stays, with what changes in it.

        Returns:
            As `rows`.

        Raises:
            StaleError, ManifestError, StorageError: as `Store.replace`.
        """
        clip, present = self._clip(video_id), self.store.rows(video_id)
        chosen = [prompt_rows.changed(present, row, clip) for row in rows]
        self.store.replace(video_id, revision, chosen)
        return self.rows(video_id)

    def undo(self, video_id: str, revision: str, redo: bool) -> dict[str, Any]:
        """Take the last change back, or make it again; returns and raises as `change`."""
        self._clip(video_id)
        self.store.undo(video_id, revision, redo)
        return self.rows(video_id)

    # Masks

    def preview(
        self, video_id: str, index: int, version: str, asked: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Masks of objects by their clicks on a frame.

        Args:
            video_id: of the video.
            index: of the frame.
            version: of the file.
            asked: of each object `object_id`, `clicks` in their order (x, y, label; of a box x2 and
                y2 instead of a label) in pixels of the first frame, and whether it `corrects` the
                mask that was tracked there, or that of the run.

        Raises:
            PromptError: a click outside the frame.
            VideoError: no such frame; `changed`: the file is another one by now.
        """
        frames = self._frames(video_id, version)
        key = (video_id, version, index)
        height, width = frames.get(index).image.shape[:2]  # streams may change size
        scale = (width / frames.size[1], height / frames.size[0])
        found = []
        for one in asked:
            number = int(one["object_id"])
            before = self._there(video_id, index, number) if one.get("corrects") else None
            clicks = [_click(click, scale) for click in one["clicks"]]
            answer = self.previewer.preview(key, self._image, clicks, before)
            if answer is not None:
                rle = encode_rle(answer.mask).decode()
                height, width = answer.mask.shape
                found.append(
                    {"object_id": number, "score": answer.score, "rle": rle, "height": height,
                     "width": width}
                )  # fmt: skip
        return found

    def masks(self, video_id: str, index: int) -> list[dict[str, Any]]:
        """Masks of the run on a frame."""
        self._clip(video_id)
        rows = [] if self.run is None else self.run.masks(video_id, index)
        names = ("object_id", "state", "score", "height", "width")
        return [{**{n: row[n] for n in names}, "rle": row["rle"].decode()} for row in rows]

    def track(self, video_id: str, here: int, count: int) -> None:
        """Begin to track from a frame on; an earlier run of the video is ended.

        Raises:
            TrackError, ManifestError, VideoError: there is nothing to track.
        """
        frames = self._frames(video_id)
        known = frames.survey.wait(here + count - 1)
        rows = prompts(parse_rows(self.store.rows(video_id))[0])
        begun = {row.object_id for row in rows if row.corner or (row.xy and row.label)}
        if not begun:
            raise TrackError("nothing to track yet: click on an object first")
        wanted = [row for row in rows if row.object_id in begun]
        plans = resolve(wanted, frames.size, *frames.survey.times())
        part = window(plans, here, count, known)
        self.cancel(video_id)
        mine = Frames(frames.survey)
        self._tracks[video_id] = Tracking(mine, part, frames.size, self.previewer.segmenter)

    def tracked(self, video_id: str, since: int) -> dict[str, Any] | None:
        """How far the video's run is, and frames found after the first `since`; None: no run."""
        run = self._tracks.get(video_id)
        return None if run is None else run.since(since)

    def cancel(self, video_id: str) -> None:
        """End the video's run, if there is one."""
        if video_id in self._tracks:
            self._tracks[video_id].cancel()

    def close(self) -> None:
        """End all that runs, and let go of the manifest."""
        self.store.close()
        for run in self._tracks.values():
            run.cancel(wait=True)
        for frames in self._open.values():
            frames.survey.close(wait=True)
        self._aside.close()
        self.previewer.close()

    def _there(self, video_id: str, index: int, number: int) -> Bools | None:
        """(H, W) of an object's mask on a frame before it is corrected."""
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
        """Of a video, opened anew if its file is another one by now: not what `version` wants."""
        clip = self._clip(video_id)
        with self._lock:
            frames = self._open.get(video_id)
            if frames is None or frames.survey.changed:
                path = localize(clip.place)
                if not path.exists():
                    raise VideoError("not_found", f"{path} is not there (any more)")
                frames = self._open[video_id] = Frames(Survey(path))
                self._thumbnails.pop(video_id, None)
            self._open.move_to_end(video_id)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)[1].survey.close()
        if version not in (None, frames.survey.version):
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
