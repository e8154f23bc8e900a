"""Videos and image folders: their frames, forward and backward, and films written from them."""
