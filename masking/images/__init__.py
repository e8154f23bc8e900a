"""Images and masks as arrays: decoding, run lengths, geometry."""
