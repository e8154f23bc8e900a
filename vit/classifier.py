"""A trained classifier with its preprocessing: uint8 images to logits, as in its evaluation."""

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
    """A trained model on its device, with the cropping and normalisation of its training."""

    model: VisionTransformer
    dataset: DatasetConfig
    numerics: Numerics
    device: torch.device

    @property
    def stored_size(self) -> int:
        """Side in pixels to which images must be decoded, S."""
        return self.dataset.store_size or self.model.config.image_size

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits, (B, C) float32 on the model's device, of (B, 3, S, S) uint8 images."""
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
    """Load weights, head included, into a model of the shape `config`.

    Args:
        weights: as read from a file.
        config: shape of the model; it must fit the weights.
        dataset: `store_size`, `mean` and `std` say how images are prepared.
        numerics: how the model is computed.
        device: where it is computed.

    Raises:
        WeightsError: the weights have no head, or do not fit `config`.
    """
    head = weights.tensors.get("head.bias")
    if head is None or head.ndim != 1 or "head.weight" not in weights.tensors:
        raise WeightsError(
            f"{weights.source} has no head, so it names no class; train a head with"
            " `python -m jobs.train --init-weights`"
        )
    with torch.device("meta"):
        model = VisionTransformer(config, len(head))
    model.load_state_dict(fit(weights, model, None).tensors, assign=True)
    numerics.prepare(model)
    return Classifier(model.to(device).eval(), dataset, numerics, device)
