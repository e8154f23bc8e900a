"""Frames of videos and image folders, forward and backward, and films written from them."""
