"""Votes of the images of a track: frames that show one object, which has one class.

The class of a track is the one that most of its images have; where several have as many, the one of
them with the highest mean probability.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.sets import Images


@dataclass(frozen=True)
class Votes:
    """The tracks of a set of images. Images of one object with several labels are several tracks.

    n images of the set, T tracks, C classes.
    """

    tracks: Tensor
    """(n,) int64 on the CPU: the track of each image, 0 to T - 1."""
    names: tuple[int, ...]
    """The index in `Dataset.tracks` of each track."""
    labels: Tensor
    """(T,) int64 on the CPU: the label of each track."""
    frames: Tensor
    """(T,) int64 on the CPU: the number of images of each track."""
    classes: int
    """C, the number of classes."""

    def zeros(self, device: torch.device) -> Tensor:
        """Return the votes before the first image: (T, C) float64."""
        return torch.zeros(len(self.labels), self.classes, dtype=torch.float64, device=device)

    def count(self, total: Tensor, samples: Tensor, logits: Tensor) -> None:
        """Add the votes of some images.

        A vote is 1, and the probabilities of all images of a track add up to half a vote at most,
        so that they only decide between equal numbers of votes.

        Args:
            total: (T, C) float64 on the device of `logits`, to which they are added.
            samples: (B,) int64 on the CPU, positions in the set.
            logits: (B, C) of these images.
        """
        tracks = self.tracks[samples]
        share = (0.5 / self.frames[tracks]).to(total)
        votes = F.one_hot(logits.argmax(dim=1), total.shape[1]).to(total)
        votes += logits.softmax(dim=1).to(total) * share[:, None]
        total.index_add_(0, tracks.to(total.device), votes)


def votes_of(images: Images, classes: int) -> Votes | None:
    """Return the tracks of a set whose labels are below `classes`; None if it has none."""
    if images.tracks is None:
        return None
    numbers, labels = images.tracks[images.rows], images.labels[images.rows]
    pairs = numbers * classes + labels
    found, tracks, frames = np.unique(pairs, return_inverse=True, return_counts=True)
    return Votes(
        torch.from_numpy(tracks.reshape(-1)),
        tuple((found // classes).tolist()),
        torch.from_numpy(found % classes),
        torch.from_numpy(frames),
        classes,
    )
