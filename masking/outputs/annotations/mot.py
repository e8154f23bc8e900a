"""MOTChallenge's table of boxes: a line a frame and object, in CSV without a header.

Its columns are frame (from 1), id, left, top, width, height, whether the line counts (0 where the
mask is uncertain), class (from 1, as in labels.txt) and visibility, which is 1: it is not known.
"""

import configparser
import io
from collections.abc import Mapping, Sequence

import pyarrow as pa

from masking.outputs.annotations.tracks import Clip
from masking.outputs.formats import category_of
from masking.outputs.rows import frames_of


def mot_files(
    table: pa.Table, clip: Clip, names: Mapping[int, str], categories: Sequence[str]
) -> dict[str, str]:
    """Return the content of the files of a sequence by their paths.

    Args:
        table: masks of the video (`masking.outputs.rows`).
        clip: the video.
        names: names of its objects by id.
        categories: names of the classes of all videos, in order.
    """
    lines = []
    for frame, rows in frames_of(table):
        for row in rows:
            if row["area"]:
                place = 1 + categories.index(category_of(names, row["object_id"]))
                counts = int(row["state"] != "uncertain")
                values = [frame + 1, row["object_id"], *row["box"], counts, place, 1]
                lines.append(",".join(map(str, values)) + "\n")
    about = configparser.ConfigParser(interpolation=None)
    about.optionxform = str  # type: ignore[assignment,method-assign]
    about["Sequence"] = {
        "name": clip.video_id.replace("\n", " "),
        "imDir": "img1",
        "frameRate": f"{clip.rate or 25:g}",
        "seqLength": str(clip.frames),
        "imWidth": str(clip.size[1]),
        "imHeight": str(clip.size[0]),
        "imExt": ".jpg",
    }
    text = io.StringIO()
    about.write(text, space_around_delimiters=False)
    return {
        "gt/gt.txt": "".join(lines),
        "gt/labels.txt": "".join(f"{' '.join(name.split())}\n" for name in categories),
        "seqinfo.ini": text.getvalue(),
    }
