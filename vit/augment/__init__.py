"""Augmentation of a whole batch on its device, each sample by its own draws."""
