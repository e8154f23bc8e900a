"""Masks of many videos: what is to do, one video on a worker, the batch, and what comes of it."""
