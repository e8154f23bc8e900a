"""What a model costs: parameters, floating-point operations, images that fit in a batch."""

import itertools
from functools import lru_cache

from vit.config import ModelConfig
from vit.model import CHANNELS, mlp_width, num_patches, num_prefix_tokens, outline, stem_widths


@lru_cache(maxsize=256)
def parameters(config: ModelConfig, num_classes: int) -> int:
    """The number of parameters of a model."""
    return sum(each.numel() for each in outline(config, num_classes).parameters())


def training_flops(config: ModelConfig, num_classes: int) -> int:
    """Floating-point operations of a training step, per image.

    The backward pass takes twice as many as the forward pass.
    """
    return 3 * flops(config, num_classes)


def flops(config: ModelConfig, num_classes: int) -> int:
    """Floating-point operations of a forward pass, per image.

    A multiply-add counts as two; norms, GELU, softmax and other elementwise work as none.
    """
    dim, patches = config.embed_dim, num_patches(config)
    tokens = num_prefix_tokens(config) + patches
    projections = tokens * (4 * dim * dim + 2 * dim * mlp_width(config))
    attention = 2 * tokens * tokens * dim
    stem = patches * CHANNELS * config.patch_size**2 * dim
    if config.stem == "conv":
        widths = stem_widths(config)
        pixels = [config.image_size**2 >> (2 * i) for i in range(1, len(widths))]
        convs = zip(pixels, itertools.pairwise(widths), strict=True)
        stem = patches * dim * dim + sum(n * 9 * before * after for n, (before, after) in convs)
    return 2 * (stem + config.depth * (projections + attention) + dim * num_classes)


def evaluation_batch(config: ModelConfig) -> int:
    """Images in a batch of an evaluation: as many as make 32,768 patches, 1 to 512.

    So many keep a device busy; more would only take more memory.
    """
    return max(1, min(512, 2**15 // num_patches(config)))
