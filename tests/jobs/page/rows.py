"""Rows of a manifest of clicks."""

LENGTH = 24


def row(**more):
    return {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 30, "y": 40, "label": 1} | more


def add(store, video_id, *rows):
    store.replace(video_id, store.revision(video_id), [*store.rows(video_id), *rows])
