"""A mask job: its plan, the work on one video, the batch, exports, scores and tables."""
