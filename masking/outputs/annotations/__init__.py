"""Masks of videos as annotations of other tools: CVAT, Label Studio, MOTChallenge, YOLO."""
