"""One side of `benchmarks.training.train`: the same training with timm's own parts.

    torchrun --nproc-per-node 2 -m benchmarks.training.timm_train --config CONFIG.yaml \\
        --loader-workers 1

timm's ImageDataset reads the folder, its loader batches and normalises, its VisionTransformer,
optimizer and scheduler train. A step does what timm's `train.py` does, without meters, logs,
checkpoints and `loss.item()`. Where timm has no such part:

- a padded crop is torchvision's RandomCrop, which replaces RandomResizedCrop in timm's transform;
  AutoAugment for CIFAR-10 and TrivialAugment are torchvision's, too (AutoAugment for ImageNet and
  RandAugment are timm's `original` and `rand-m..-n..`);
- a convolutional stem is that of `vit.model`, in place of `patch_embed`.

AdamW is torch's fused one, as ours is; timm's default is torch's loop on a CPU. Muon is timm's,
which computes in bfloat16 on any processor. Where bfloat16 is emulated, it takes longer than the
rest of a small model's step; ours computes in float32 there.
"""

import argparse
import itertools
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from timm.data import Mixup, create_dataset, create_loader
from timm.layers import set_fused_attn
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import transforms

from benchmarks.training.plain_train import WARM_STEPS, end, join, read
from jobs.classifier.task import TrainConfig
from jobs.cluster.workers import keep_memory
from vit.config import AugmentConfig, ModelConfig
from vit.model import ConvStem

TORCHVISION_POLICIES = {
    "autoaugment-cifar10": transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
    "trivialaugment": transforms.TrivialAugmentWide(),
}


def build(config: ModelConfig, classes: int) -> nn.Module:
    """Return timm's VisionTransformer of the same shape."""
    model = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=classes,
        global_pool=config.global_pool,
        class_token=config.global_pool == "token",
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        init_values=config.init_values,
        reg_tokens=config.reg_tokens,
        pos_drop_rate=config.drop_rate,
        proj_drop_rate=config.drop_rate,
        attn_drop_rate=config.attn_drop_rate,
        drop_path_rate=config.drop_path_rate,
    )
    if config.stem == "conv":
        model.patch_embed = ConvStem(config)
    return model


def timm_policy(config: AugmentConfig) -> str | None:
    """Return timm's name of the automatic augmentation, or None if timm has none."""
    strength = config.randaugment_magnitude / 3  # the maximum is 30 here, 10 in timm
    names = {
        "autoaugment-imagenet": "original",
        "randaugment": f"rand-m{strength:.0f}-n{config.randaugment_ops}",
    }
    return names.get(config.policy)


def loader(config: TrainConfig, world: int, loader_workers: int) -> Any:
    """Return timm's loader of this rank's batches: normalised float32 images, labels."""
    policy, size = config.augment, config.model.image_size
    batches = create_loader(
        create_dataset("", root=config.data[0], split="train"),
        input_size=(3, size, size),
        batch_size=config.batch_size // world,
        is_training=True,
        scale=policy.crop_scale,
        ratio=policy.crop_ratio,
        hflip=policy.hflip,
        color_jitter=None,
        auto_augment=timm_policy(policy),
        re_prob=policy.erasing,
        interpolation="bilinear",
        mean=config.dataset.mean,
        std=config.dataset.std,
        num_workers=loader_workers,
        distributed=world > 1,
        device=torch.device("cpu"),
        pin_memory=False,
    )
    steps = batches.dataset.transform.transforms
    if policy.crop == "pad":
        steps[0] = transforms.RandomCrop(size, padding=policy.crop_padding)
    if policy.policy in TORCHVISION_POLICIES:
        steps.insert(-1, TORCHVISION_POLICIES[policy.policy])  # the last transform makes a tensor
    return batches


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's AdamW, or its Muon with AdamW for the same parameters as ours."""
    optim = config.optim
    if optim.optimizer == "adamw":
        return create_optimizer_v2(
            model,
            "adamw",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            betas=optim.betas,
            fused=True,
        )
    return create_optimizer_v2(
        model,
        "nmuon",
        lr=optim.muon_lr,
        weight_decay=optim.muon_weight_decay,
        fallback_list=["patch_embed.*", "head.*", "pos_embed", "cls_token", "reg_token"],
    )


class Training:
    """The objects of a training script of timm, and its step."""

    def __init__(
        self, config: TrainConfig, classes: int, steps: int, layout: torch.memory_format
    ) -> None:
        """Build them for an epoch of `steps` steps."""
        self.config, self.layout = config, layout
        optim, policy = config.optim, config.augment
        self.bare = build(config.model, classes).to(memory_format=layout)
        self.optimizer = optimizer_of(self.bare, config)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            optim.schedule,
            num_epochs=config.epochs,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
        smoothing = optim.label_smoothing
        mixing = {"prob": policy.mix_prob, "label_smoothing": smoothing, "num_classes": classes}
        self.mixup = Mixup(policy.mixup, policy.cutmix, **mixing) if policy.mixes else None
        self.criterion = (
            SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(smoothing)
        )
        self.average = ModelEmaV3(self.bare) if optim.ema_half_life else None
        self.model = self.bare
        if dist.is_initialized():
            self.model = DistributedDataParallel(self.bare, broadcast_buffers=False)
        self.model.train()

    def step(self, number: int, images: Tensor, labels: Tensor) -> None:
        """Run forward, backward and update as timm's train.py does."""
        images = images.contiguous(memory_format=self.layout)
        if self.mixup:
            images, labels = self.mixup(images, labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            loss = self.criterion(self.model(images), labels)
        loss.backward()
        if self.config.optim.clip_norm:
            dispatch_clip_grad(self.model.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        if self.average:
            self.average.update(self.bare, step=number)
        self.optimizer.zero_grad()
        self.scheduler.step_update(number)


def train(training: Training, batches: Iterable[tuple[Tensor, Tensor]], steps: int) -> float:
    """Return the images/s of all ranks over `steps` steps, without the first ones."""
    for number, (images, labels) in enumerate(itertools.islice(batches, steps)):
        if number == WARM_STEPS:
            start = time.perf_counter()
        training.step(number, images, labels)
    seconds = time.perf_counter() - start
    return (steps - WARM_STEPS) * training.config.batch_size / seconds


def main() -> None:
    """Train for an epoch and print the rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, help="default: an epoch")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument(
        "--no-fused-attention", action="store_true", help="timm's TIMM_FUSED_ATTN=0"
    )
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    keep_memory()  # as ours does
    set_fused_attn(not options.no_fused_attention)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    config = replace(read(options.config), precision=options.precision)
    ranks = join(config)
    batches = loader(config, ranks.world, options.loader_workers)
    training = Training(config, len(batches.dataset.reader.class_to_idx), len(batches), layout)
    end(ranks, {"images_per_s": train(training, batches, options.steps or len(batches))})


if __name__ == "__main__":
    main()
