"""Clicks to masks: promptable segmenters, their training, and what masks are made into."""
