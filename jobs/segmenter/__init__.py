"""Training, evaluation and export of a promptable segmenter."""
