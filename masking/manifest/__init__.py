"""Manifests: tables of prompts, read, checked, and fitted to their videos."""
