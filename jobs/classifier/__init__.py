"""Training, measuring and exporting a Vision Transformer that classifies images."""
