"""Training, measuring and exporting a promptable segmenter."""
