"""Tracking: masks through a video from clicks, with states that say which can be trusted."""
