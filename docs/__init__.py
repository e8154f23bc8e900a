"""Documentation, and the commands that make its pictures and the clips of `make demo`."""
