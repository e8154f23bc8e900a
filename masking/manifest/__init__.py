"""The table of prompts: read, checked, and what a person asked of each object."""
