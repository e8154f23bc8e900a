"""Networks that remember frames: SAM 2.1, EdgeTAM and SAM 3's tracker, from transformers."""
