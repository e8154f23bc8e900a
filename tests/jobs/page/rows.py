"""Rows of a manifest of clicks."""

import csv
import io

LENGTH = 24
"""Frames of the first video."""


def row(**more):
    return {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 30, "y": 40, "label": 1} | more


def add(store, video_id, *rows):
    store.replace(video_id, store.revision(video_id), [*store.rows(video_id), *rows])


def saved(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))
