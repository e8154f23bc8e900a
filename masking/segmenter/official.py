"""Meta's SAM (Kirillov et al. 2023, arXiv 2304.02643) in batches.

The modules are those of the `segment_anything` package, and weights have its names; only the
forward pass is ours. The decoder takes prompts on any frames with any number of points in one
call. In float32 the results equal the package's to rounding.

Shapes:
    B: images, S: side of the canvas, G = S / 16: side of the grid of patches
    N: prompt sets, P: points of each, L = 7 + P: tokens of each
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from masking.segmenter.two_way import freeze_unused, transform
from masking.segmenter.vit_encoder import encode, norm_last
from masking.segmenter.weights import LISTED, fill, refuse, refuse_prefix

PATCH = 16
"""Pixels along a patch of SAM's encoder."""
TOKEN_HEADS = 8
"""Attention heads of SAM's decoder. No shape of the weights tells them, nor `PATCH`."""
_ANCHORS = (
    "image_encoder.pos_embed",
    "image_encoder.patch_embed.proj.weight",
    "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.mask_tokens.weight",
)
"""Names that the weights of every SAM have."""


class Official(nn.Module):
    """Meta's SAM (vit_b, vit_l, vit_h or any other size): a `masking.segmenter.network.Network`."""

    def __init__(self, sam: Sam) -> None:
        """Use a model of the package, its weights included; some biases are frozen."""
        super().__init__()
        self.sam = sam
        self.autocast = True
        self.recompute = False  # blocks of the encoder, in the backward pass; see vit_encoder
        self.side = int(sam.image_encoder.img_size)
        self.mask_stride = self.side // (4 * sam.prompt_encoder.image_embedding_size[0])
        self.fill: tuple[float, ...] = tuple(sam.pixel_mean.flatten().tolist())
        freeze_unused(sam.mask_decoder.transformer)

    @property
    def encoder(self) -> nn.Module:
        """The part that depends on images only."""
        return self.sam.image_encoder

    def lower(self) -> None:
        """Cast the encoder to bfloat16; the rest stays and is computed in float32."""
        self.encoder.bfloat16()
        self.autocast = False

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the encoder's stages: the patches, then each block."""
        encoder = self.sam.image_encoder
        first = [*encoder.patch_embed.parameters(), encoder.pos_embed]
        return [first, *(list(block.parameters()) for block in encoder.blocks)]

    def training_side(self, side: int) -> str:
        """Return the side that training images must have, in words; "" if `side` is allowed."""
        return "" if side == self.side else str(self.side)

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Return the pixels of the canvas per pixel of a frame of (H, W)."""
        return self.side / max(frame_size)

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the canvas (S, S), whatever the frame's shape."""
        return self.side, self.side

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, S, S) RGB in [0, 255] to one embedding (B, 256, G, G) float32."""
        images = (images - self.sam.pixel_mean) / self.sam.pixel_std
        return (encode(self.sam.image_encoder, images, recompute=self.recompute),)

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the embedding, less its mean over the image."""
        return features[0] - features[0].mean(dim=(2, 3), keepdim=True)

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, 4, 4G, 4G) and predicted IoU (N, 4), as `Network.decode`."""
        tokens, real = self._tokens(points, labels, boxes)
        embedding = features[0]
        if frames is not None and len(embedding) > 1:
            embedding = embedding[frames]
        image = embedding.float().flatten(2).transpose(1, 2) + self._dense(mask_input)
        image = image.expand(len(points), -1, -1)  # one frame needs no copy for each set
        positions = self.sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous()
        transformer = self.sam.mask_decoder.transformer
        tokens, image = transform(transformer, tokens, real, image, positions)
        scores = self.sam.mask_decoder.iou_prediction_head(tokens[:, 0])
        return self._masks(tokens, image).float(), scores.float()

    def _tokens(self, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (N, L, 256), and which of them are real, (N, L) bool.

        They are the output tokens, the points, then two for the box. Without a box SAM adds "not a
        point" where there are points: its label -1, which is a real token. Our -1 is a filler that
        nothing attends to.
        """
        prompts, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        n = len(points)
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        background, foreground, first, last = (e.weight for e in prompts.point_embeddings)
        kinds = torch.cat([background, foreground])[labels.clamp(min=0)]
        point = self._positions(points) + kinds
        boxed = ~boxes.isnan().any(dim=1)
        corners = self._positions(boxes.nan_to_num(0).view(n, 2, 2)) + torch.cat([first, last])
        pad = prompts.not_a_point_embed.weight
        third = torch.where(boxed[:, None], corners[:, 0], pad)
        tokens = [output.expand(n, -1, -1), point, third[:, None], corners[:, 1:]]
        placed = labels >= 0
        real = [
            torch.ones(n, len(output), dtype=torch.bool, device=labels.device),
            placed,
            (boxed | placed.any(dim=1))[:, None],
            boxed[:, None],
        ]
        return torch.cat(tokens, dim=1), torch.cat(real, dim=1)

    def _positions(self, points: Tensor) -> Tensor:
        """Encode positions (N, P, 2) in pixels of the canvas, at the centres of pixels."""
        prompts = self.sam.prompt_encoder
        encoded: Tensor = prompts.pe_layer.forward_with_coords(
            points + 0.5, prompts.input_image_size
        )
        return encoded

    def _dense(self, mask_input: Tensor | None) -> Tensor:
        """Return what earlier logits add to the image: (N, G * G, 256), or (1, 1, 256) for None."""
        prompts = self.sam.prompt_encoder
        none = prompts.no_mask_embed.weight[None]
        if mask_input is None:
            return none
        given = mask_input.isfinite().all(dim=(1, 2))
        dense = prompts.mask_downscaling(mask_input.nan_to_num(0)[:, None])
        return torch.where(given[:, None, None], dense.flatten(2).transpose(1, 2), none)

    def _masks(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Return logits (N, 4, 4G, 4G) from the transformed tokens and image.

        The decoder's transposed convolutions of stride 2 do not overlap: they are products,
        channels last. Pixels are put in their places at the end, when they have 4 channels, not 64.
        """
        decoder = self.sam.mask_decoder
        first, norm, gelu, second, _ = decoder.output_upscaling
        side = self.sam.prompt_encoder.image_embedding_size[0]
        x = gelu(norm_last(norm, _quadruple(first, image)))  # (N, G * G, 4, 64)
        x = gelu(_quadruple(second, x)).flatten(2, 3)  # (N, G * G, 16, 32)
        heads = decoder.output_hypernetworks_mlps
        weights = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
        logits = weights @ x.flatten(1, 2).transpose(1, 2)  # (N, 4, G * G * 16)
        logits = logits.view(len(tokens), len(heads), side, side, 2, 2, 2, 2)
        logits = logits.permute(0, 1, 2, 4, 6, 3, 5, 7)  # rows, then columns: coarse to fine
        return logits.reshape(len(tokens), len(heads), 4 * side, 4 * side)


def _quadruple(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a transposed convolution of stride and kernel 2: (..., C) to (..., 4, c)."""
    weight, bias = conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.get_parameter("bias")
    return F.linear(x, weight, bias.repeat(4)).view(*x.shape[:-1], 4, -1)


def build(tensors: Mapping[str, Tensor], file: Path) -> Sam:
    """Build a `Sam` of the size that the tensors have, in evaluation mode, with them as weights.

    Args:
        tensors: the weights by name.
        file: where they were read, for messages.

    Raises:
        SegmenterWeightsError: Names or shapes are not those of a SAM with a ViT.
    """
    refuse_prefix(tensors, _ANCHORS, file)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    try:
        with torch.device("meta"):  # no time for weights that are replaced
            sam = Sam(_encoder(tensors), *_decoder(tensors), mean, std)
    except KeyError as error:
        some = f"it has {', '.join(sorted(tensors)[:LISTED])} ..." if tensors else "it is empty"
        refuse(file, "is not a checkpoint of SAM", [f"{error.args[0]} is missing; {some}"])
    except (ValueError, TypeError, AssertionError, ArithmeticError, LookupError) as error:
        refuse(file, "is not a checkpoint of SAM", [f"its shapes do not fit: {error}"])
    fill(sam, tensors, file, "SAM")
    sam.pixel_mean, sam.pixel_std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    return sam.eval()


def _encoder(tensors: Mapping[str, Tensor]) -> ImageEncoderViT:
    """Build the encoder of the size that the tensors have, without weights."""
    prefix = "image_encoder."
    width = tensors[prefix + "patch_embed.proj.weight"].shape[0]
    grid = tensors[prefix + "pos_embed"].shape[1]
    tables = [
        tensors[f"{prefix}blocks.{i}.attn.rel_pos_h"]
        for i in range(_count(tensors, prefix + "blocks."))
    ]
    sides = [(len(table) + 1) // 2 for table in tables]  # patches along what a block attends over
    return ImageEncoderViT(
        img_size=PATCH * grid,
        patch_size=PATCH,
        embed_dim=width,
        depth=len(tables),
        num_heads=width // tables[0].shape[1],
        mlp_ratio=len(tensors[prefix + "blocks.0.mlp.lin1.bias"]) / width,
        out_chans=len(tensors[prefix + "neck.0.weight"]),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(sides),
        global_attn_indexes=tuple(i for i, side in enumerate(sides) if side == grid),
    )


def _decoder(tensors: Mapping[str, Tensor]) -> tuple[PromptEncoder, MaskDecoder]:
    """Build prompt encoder and mask decoder of the size that the tensors have, without weights."""
    prefix = "mask_decoder."
    grid = tensors["image_encoder.pos_embed"].shape[1]
    outputs, width = tensors[prefix + "mask_tokens.weight"].shape
    prompts = PromptEncoder(
        embed_dim=width,
        image_embedding_size=(grid, grid),
        input_image_size=(PATCH * grid, PATCH * grid),
        mask_in_chans=len(tensors["prompt_encoder.mask_downscaling.3.weight"]),
    )
    transformer = TwoWayTransformer(
        depth=_count(tensors, prefix + "transformer.layers."),
        embedding_dim=width,
        num_heads=TOKEN_HEADS,
        mlp_dim=len(tensors[prefix + "transformer.layers.0.mlp.lin1.bias"]),
    )
    decoder = MaskDecoder(
        transformer_dim=width,
        transformer=transformer,
        num_multimask_outputs=outputs - 1,
        iou_head_depth=_count(tensors, prefix + "iou_prediction_head.layers."),
        iou_head_hidden_dim=len(tensors[prefix + "iou_prediction_head.layers.0.bias"]),
    )
    return prompts, decoder


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules whose names begin with `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
