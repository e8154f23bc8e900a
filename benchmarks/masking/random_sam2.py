"""SAM 2.1 with random weights and a canvas of any size, for benchmarks; the rest is sam2.1-tiny's.

How long a network takes, and what it keeps, does not depend on its weights.
"""

from typing import Any

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel

STRIDES = (4, 8, 16)


def random_model(side: int, **changes: Any) -> Any:
    """Return a `Sam2VideoModel` of transformers in float32.

    Args:
        side: of the canvas in pixels, a multiple of 32; sam2.1-tiny has 1,024.
        changes: other settings of `Sam2VideoConfig`.
    """
    torch.manual_seed(0)
    config = {
        "image_size": side,
        "memory_attention_rope_feat_sizes": [side // 16] * 2,
        "prompt_encoder_config": {"image_size": side},
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_feature_sizes": [[side // stride] * 2 for stride in STRIDES],
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
            },
        },
    }
    model = Sam2VideoModel(Sam2VideoConfig.from_dict({**config, **changes}))
    return model.eval()
