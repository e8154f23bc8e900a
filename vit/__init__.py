"""The Vision Transformer: model, data, augmentation, optimisation, one training step."""
