"""One run of a job: its settings, folder, progress, signals, device and exit code."""
