"""Training the part of `mini` that follows objects from frame to frame, as a task of the loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import Sets
from jobs.segmenter.task import SegmentTask
from jobs.storage.cache import localize
from jobs.storage.location import Location
from jobs.training import steps
from jobs.training.ranks import Ranks
from jobs.training.task import means, validation_metric
from masking.images.geometry import deepest
from masking.segmenter.mini import Mini, Remembering
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import mask_video
from masking.training.clips import VOID, Film, clip, films
from masking.training.follow import ClipBatch, ClipTrainee, gradients
from vit import rng

HELD = 0.2
"""Share of the videos that are held back for validation if none is named."""


@dataclass(frozen=True)
class FilmSets:
    """Videos whose masks are known, to train on and held back."""

    train: tuple[Film, ...]
    val: tuple[Film, ...]


def load_films(config: FinetuneConfig) -> FilmSets:
    """Find the videos of --clips on this node, and hold some back; no frame is decoded.

    Raises:
        ConfigError: a folder has no videos, a name is not one of theirs, or none is left.
    """
    found: list[Film] = []
    for path in config.clips:
        mine = films(Path(localize(Location.parse(path))))
        if not mine:
            raise ConfigError(
                f"--clips {path} has no videos; expected a folder with JPEGImages/NAME/*.jpg and"
                " Annotations/NAME/*.png"
            )
        found += mine
    names = {film.name for film in found}
    if unknown := sorted(set(config.held_clips) - names):
        raise ConfigError(
            f"--held-clips {', '.join(unknown)}: no such video in --clips; it has"
            f" {', '.join(sorted(names)[:10])}{' ...' if len(names) > 10 else ''}"
        )
    held = set(config.held_clips)
    if not held:
        order = rng.permutation(len(found), "clips", config.seed).tolist()
        held = {found[i].name for i in order[: max(1, round(HELD * len(found)))]}
    train, val = (tuple(f for f in found if (f.name in held) == kept) for kept in (False, True))
    if not train:
        raise ConfigError(
            f"--clips has {len(found)} videos, all of them held back; none is left to train on"
        )
    return FilmSets(train, val)


class ClipTask(SegmentTask):
    """The part of `mini` that follows objects, as a task of the epoch loop, on one rank.

    Encoder and decoder of prompts stay as they are. An epoch has a clip for each image of --data.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        sets: Sets,
        films: FilmSets,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Prepare threads that make clips; no image is read yet."""
        super().__init__(config, sets, device, ranks)
        self.films = films

    def build(self) -> nn.Module:
        """Return the network with a part for clips, the only one that is trained.

        If the weights have none, it starts as a copy of the decoder of prompts.
        """
        network = super().build().network
        assert isinstance(network, Mini)
        if network.memory is None:
            network.memory = Remembering(network.config)
            network.memory.start_from(network.encoder, network.decoder, network.config)
        for part in (network.encoder, network.decoder):
            part.requires_grad_(False)
        network.memory.requires_grad_(True)
        return ClipTrainee(network).to(self.device).to(memory_format=torch.channels_last)

    def _contents(self) -> dict[str, int]:
        return {
            "train": len(self.sets.train),
            "train_clips": len(self.films.train),
            "val_clips": len(self.films.val),
        }

    def describe(self) -> str:
        """Return the sizes of the sets, and the precision."""
        sizes = self._contents()
        return (
            f"videos: {sizes['train_clips']:,} train, {sizes['val_clips']:,} val; images to make"
            f" clips of: {sizes['train']:,}\n{self.precision} on {self.device.type}"
        )

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Compute the gradient of this rank's part of batch `index` of `epoch`; see `Task`."""
        parts = self.batches.take(epoch, index, self.steps_per_epoch)
        images, labels, seeds = (part.to(self.device, non_blocking=True) for part in parts)
        batch = ClipBatch(images, labels, seeds, self.config.batch_size)
        return gradients(model, batch, self.config.prompts, self.precision, self.ranks.world)

    def _compose(self, epoch: int, index: int) -> tuple[Tensor, ...]:
        """Make this rank's part of a batch: images (b, T, 3, S, S), labels (b, T, S, S), seeds."""
        n, seed = len(self.sets.train), self._seed
        rows = steps.batch(n, self.config.batch_size, seed, epoch, index)
        rows = steps.shard(rows, self.ranks.rank, self.ranks.world)
        made = [
            clip(self.sets.train, self.films.train, self.config.clip, seed, epoch, row)
            for row in rows.tolist()
        ]
        images = torch.from_numpy(np.stack([each.images for each in made])).permute(0, 1, 4, 2, 3)
        labels = torch.from_numpy(np.stack([each.labels for each in made]))
        parts = (images.contiguous(), labels, rows + (epoch << 32) + (seed << 48))
        return tuple(part.pin_memory() if self.device.type == "cuda" else part for part in parts)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Return (2,) sums over this rank's part of the videos held back: of the mean IoU of each
        object from one click on the first frame, and of objects."""
        if split == "test":
            return None
        assert isinstance(model, ClipTrainee)
        rows = torch.arange(len(self.films.val))
        rows = steps.shard(rows, self.ranks.rank, self.ranks.world)
        segmenter = Segmenter(model.network, self.device, self.precision)
        ious = [iou for row in rows.tolist() for iou in followed(segmenter, self.films.val[row])]
        return torch.tensor([sum(ious), len(ious)], dtype=torch.float64, device=self.device)

    def score(self, row: dict[str, Any]) -> list[float]:
        """Return the mean IoU of the videos held back."""
        return [validation_metric(row, "iou")]

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Return means over clips in training, over objects in validation."""
        training = ("loss", "iou_first", "iou_last", "score_error")
        return means(sums, training if prefix == "train" else ("iou",), prefix)


def followed(segmenter: Segmenter, film: Film) -> list[float]:
    """Return the mean IoU over frames of each object, from a click in its middle on the first."""
    truth = np.stack([film.frame(index)[1] for index in range(len(film.images))])
    rows, objects = [], []
    for number in np.unique(truth[0]).tolist():
        place = deepest(truth[0] == number) if 0 < number < VOID else None
        if place is not None:
            objects.append(number)
            rows.append({"object_id": number, "frame": 0, "x": place[0], "y": place[1]})
    if not rows:
        return []
    found = np.stack([frame.masks for frame in mask_video(film.folder, rows, segmenter)], axis=1)
    means = []
    for number, masks in zip(objects, found, strict=True):
        right, counts = truth == number, truth != VOID
        both = (right & masks & counts).sum(axis=(1, 2))
        either = ((right | masks) & counts).sum(axis=(1, 2))
        means.append(float(np.where(either > 0, both / np.maximum(either, 1), 1.0)[1:].mean()))
    return means
