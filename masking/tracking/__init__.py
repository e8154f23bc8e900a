"""Clicks carried through a video as masks, with a state that says what can be trusted."""
