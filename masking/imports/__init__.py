"""Annotations of other tools: CVAT, Label Studio, COCO, YOLO, DAVIS and YouTube-VOS."""
