"""The epoch loop that every training shares, on any number of ranks, and how Ray Train runs it."""
