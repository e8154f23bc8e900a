"""A trained model and what goes before it: uint8 images to logits, as its training evaluated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vit.augment.augment import center_crop, normalize
from vit.config import DatasetConfig, ModelConfig
from vit.model import VisionTransformer
from vit.numerics import Numerics, autocast
from vit.weights import Weights, WeightsError, fit


@dataclass(frozen=True)
class Classifier:
    """A model on its device, ready for images."""

    model: VisionTransformer
    dataset: DatasetConfig
    numerics: Numerics
    device: torch.device

    @property
    def stored_size(self) -> int:
        """Side in pixels at which images are decoded for it."""
        return self.dataset.store_size or self.model.config.image_size

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images: (B, 3, S, S) uint8, on any device, to (B, C) float32 on the model's."""
        images = images.to(self.device, non_blocking=True)
        cut = center_crop(images, self.model.config.image_size)
        inputs = normalize(cut, self.dataset.mean, self.dataset.std)
        with autocast(self.device, self.numerics.precision):
            return self.model(inputs).float()


def load(
    weights: Weights,
    config: ModelConfig,
    dataset: DatasetConfig,
    numerics: Numerics,
    device: torch.device,
) -> Classifier:
    """Put weights into a model of shape `config`, whose head is the weights' own.

    Raises:
        WeightsError: there is no head, or what `vit.weights.fit` raises.
    """
    head = weights.tensors.get("head.bias")
    if head is None:
        raise WeightsError(
            f"{weights.source} has no head, so it names no class; train one with"
            " `python -m jobs.train --init-weights`"
        )
    with torch.device("meta"):
        model = VisionTransformer(config, len(head))
    model.load_state_dict(fit(weights, model, None).tensors, assign=True)
    numerics.prepare(model)
    return Classifier(model.to(device).eval(), dataset, numerics, device)
