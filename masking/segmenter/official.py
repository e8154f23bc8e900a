"""Meta's SAM (Kirillov et al. 2023, arXiv 2304.02643) in batches, on the package's own modules.

The weights are those of `segment_anything.modeling.Sam`, under its names; only the way through them
is ours. The encoder (a ViT with windows and decomposed relative positions, Li et al. 2022, arXiv
2203.16527) leaves attention to torch's fused kernels. The decoder takes prompts on any frames with
any number of points in one call, fillers masked out where tokens are keys, and projects its few
tokens instead of the image. In float32 both equal the package to rounding.

The CUDA path (fused attention with a bias, static shapes, nothing read back) has not been run yet.

Shapes:
    B: images, S: side of the canvas, G = S / 16: side of the grid of patches
    W: windows, B of them or more; s: side of a window, T = s * s: its tokens
    H: heads, d: channels of a head, D: channels of a token
    N: prompt sets, P: points of each, L = 7 + P: tokens of each
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
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
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    window_partition,
    window_unpartition,
)
from segment_anything.modeling.transformer import Attention as TokenAttention
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn

from masking.segmenter.weights import LISTED, fill, refuse

PATCH = 16
"""Pixels along a patch of SAM's encoder."""
TOKEN_HEADS = 8
"""Heads of the attention in SAM's decoder: with `PATCH` all that shows in no shape."""
CACHED_BIASES = 1 << 23
"""Elements of the attention's bias that a CPU makes at a time: 16 MB, which its last cache holds
and its allocator keeps for the next. A GPU makes all of them: 0.4 GB an image for vit_b."""


class Official(nn.Module):
    """A `Network` of `masking.segmenter.sam` for vit_b, vit_l, vit_h and any other `Sam`."""

    def __init__(self, sam: Sam) -> None:
        """Takes the model over."""
        super().__init__()
        self.sam = sam
        self.autocast = True
        self.side = int(sam.image_encoder.img_size)
        self.mask_stride = self.side // (4 * sam.prompt_encoder.image_embedding_size[0])
        self.fill: tuple[float, ...] = tuple(sam.pixel_mean.flatten().tolist())
        transformer = sam.mask_decoder.transformer
        looks = [layer.cross_attn_token_to_image for layer in transformer.layers]
        for look in (*looks, transformer.final_attn_token_to_image):
            look.k_proj.bias.requires_grad_(False)  # softmax does not see it: `_look`

    @property
    def encoder(self) -> nn.Module:
        """All that works on images alone."""
        return self.sam.image_encoder

    def lower(self) -> None:
        """The encoder to bfloat16; all else stays and is computed in float32."""
        self.encoder.bfloat16()
        self.autocast = False

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters of the encoder's stages, first to last: the patches, then the blocks."""
        encoder = self.sam.image_encoder
        first = [*encoder.patch_embed.parameters(), encoder.pos_embed]
        return [first, *(list(block.parameters()) for block in encoder.blocks)]

    def training_side(self, side: int) -> str:
        """What square images must measure, if `side` does not do."""
        return "" if side == self.side else str(self.side)

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Pixels of the canvas per pixel of a frame of (H, W)."""
        return self.side / max(frame_size)

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """(S, S), whatever the frame's shape."""
        return self.side, self.side

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) RGB in [0, 255] to one (B, 256, G, G) float32."""
        encoder = self.sam.image_encoder
        images = (images - self.sam.pixel_mean) / self.sam.pixel_std
        x = encoder.patch_embed(images.to(encoder.patch_embed.proj.weight.dtype))
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed
        for block in encoder.blocks:
            x = _block(block, x)
        return (_neck(encoder.neck, x),)

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """The embedding, less what all of the image has in common."""
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
        """Logits (N, 4, 4G, 4G) and predicted IoU (N, 4), float32, of N prompt sets.

        Args:
            features: of `encode`.
            frames: (N,) int64, the image of each set; None: the features are those of each set.
            points: (N, P, 2) float32 (x, y), pixels of the canvas.
            labels: (N, P) int64: 1 foreground, 0 background, -1 filler.
            boxes: (N, 4) float32 x1 y1 x2 y2, pixels of the canvas; NaN: none.
            mask_input: (N, 4G, 4G) float32 logits of an earlier call; a row of NaN: none.
        """
        tokens, real = self._tokens(points, labels, boxes)
        chosen = features[0]
        if frames is not None and len(chosen) > 1:
            chosen = chosen[frames]
        image = chosen.float().flatten(2).transpose(1, 2) + self._dense(mask_input)
        image = image.expand(len(points), -1, -1)  # one frame needs no copy for each
        positions = self.sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous()
        tokens, image = self._transform(tokens, real, image, positions)
        scores = self.sam.mask_decoder.iou_prediction_head(tokens[:, 0])
        return self._masks(tokens, image).float(), scores.float()

    def _tokens(self, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, L, 256), and which of them are real (N, L).

        Output tokens, points, then two for the box. Without one SAM adds "not a point" where there
        are points: its label -1, which is a real token. Ours is a place that nobody attends to.
        """
        prompts, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        n = len(points)
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        background, foreground, first, last = (e.weight for e in prompts.point_embeddings)
        kinds = torch.cat([background, foreground])[labels.clamp(min=0)]
        point = self._places(points) + kinds
        boxed = ~boxes.isnan().any(dim=1)
        corners = self._places(boxes.nan_to_num(0).view(n, 2, 2)) + torch.cat([first, last])
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

    def _places(self, points: Tensor) -> Tensor:
        """Encode positions (N, P, 2) in pixels of the canvas, at the centres of pixels."""
        prompts = self.sam.prompt_encoder
        places: Tensor = prompts.pe_layer.forward_with_coords(
            points + 0.5, prompts.input_image_size
        )
        return places

    def _dense(self, mask_input: Tensor | None) -> Tensor:
        """What earlier logits add to the image: (N, G * G, 256), or (1, 1, 256) without any."""
        prompts = self.sam.prompt_encoder
        none = prompts.no_mask_embed.weight[None]
        if mask_input is None:
            return none
        given = mask_input.isfinite().all(dim=(1, 2))
        dense = prompts.mask_downscaling(mask_input.nan_to_num(0)[:, None])
        return torch.where(given[:, None, None], dense.flatten(2).transpose(1, 2), none)

    def _transform(
        self, tokens: Tensor, real: Tensor, image: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer: tokens (N, L, 256) and image (N, G * G, 256), renewed."""
        transformer = self.sam.mask_decoder.transformer
        queries = tokens
        for number, layer in enumerate(transformer.layers):
            queries = _among_tokens(layer, queries, tokens, real, first=number == 0)
            placed = image + positions
            found = _look(layer.cross_attn_token_to_image, queries + tokens, placed, image)
            queries = layer.norm2(queries + found)
            queries = layer.norm3(queries + layer.mlp(queries))
            tell = layer.cross_attn_image_to_token
            image = layer.norm4(_tell(tell, image, placed, queries + tokens, queries, real))
        last = transformer.final_attn_token_to_image
        found = _look(last, queries + tokens, image + positions, image)
        return transformer.norm_final_attn(queries + found), image

    def _masks(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Logits (N, 4, 4G, 4G) of transformed tokens and image.

        Its transposed convolutions of stride 2 do not overlap: they are products, channels last,
        and the pixels are put in their places at the end, when they have 4 channels and not 64.
        """
        decoder = self.sam.mask_decoder
        first, norm, gelu, second, _ = decoder.output_upscaling
        side = self.sam.prompt_encoder.image_embedding_size[0]
        x = gelu(_norm(norm, _quadruple(first, image)))  # (N, G * G, 4, 64)
        x = gelu(_quadruple(second, x)).flatten(2, 3)  # (N, G * G, 16, 32)
        heads = decoder.output_hypernetworks_mlps
        weights = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
        logits = weights @ x.flatten(1, 2).transpose(1, 2)  # (N, 4, G * G * 16)
        logits = logits.view(len(tokens), len(heads), side, side, 2, 2, 2, 2)
        logits = logits.permute(0, 1, 2, 4, 6, 3, 5, 7)  # rows, then columns: coarse to fine
        return logits.reshape(len(tokens), len(heads), 4 * side, 4 * side)


def _block(block: Block, x: Tensor) -> Tensor:
    """A block of the encoder on (B, G, G, D), in windows if it has them."""
    y = block.norm1(x)
    if block.window_size > 0:
        y, padded = window_partition(y, block.window_size)
        y = _self_attention(block.attn, y)
        y = window_unpartition(y, block.window_size, padded, x.shape[1:3])
    else:
        y = _self_attention(block.attn, y)
    x = x + _linear(block.attn.proj, y)  # after the padding is gone
    return x + _linear(block.mlp.lin2, _linear(block.mlp.lin1, block.norm2(x), gelu=True))


def _self_attention(module: Attention, x: Tensor) -> Tensor:
    """Attention with decomposed relative positions on (W, s, s, D), before `module.proj`."""
    w, s = x.shape[:2]
    qkv = _linear(module.qkv, x).view(w, s * s, 3, module.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()  # (W, H, T, d) each
    square = q.unflatten(2, (s, s))
    rows = torch.einsum("whyxd,yjd->whyxj", square, _distances(module.rel_pos_h, s))
    columns = torch.einsum("whyxd,xjd->whyxj", square, _distances(module.rel_pos_w, s))
    places = torch.cat([rows, columns], dim=-1).flatten(2, 3)  # (W, H, T, 2s)
    keys = _places_of_keys(s, places)
    out = torch.empty_like(x).view(w, s * s, module.num_heads, -1)
    for some, queries in _parts(w, module.num_heads, s * s, whole=x.is_cuda):
        bias = places[:, some, queries] @ keys
        found = F.scaled_dot_product_attention(
            q[:, some, queries], k[:, some], v[:, some], attn_mask=bias
        )
        out[:, queries, some] = found.transpose(1, 2)
    return out.view(x.shape)


def _distances(table: Tensor, s: int) -> Tensor:
    """(s, s, d): of a table (2s - 1, d), the distance of every query to every key along a side."""
    place = torch.arange(s, device=table.device)
    return table[place[:, None] - place + s - 1]


def _places_of_keys(s: int, like: Tensor) -> Tensor:
    """(2s, T) of ones and zeros: the row and the column of every key of s x s.

    The bias of relative positions is a product with it, and exactly the sum of both parts; a sum
    that broadcasts takes six times as long on a CPU over windows of 14 x 14.
    """
    one = torch.eye(s, dtype=like.dtype, device=like.device)
    return torch.cat([one.repeat_interleave(s, dim=1), one.repeat(1, s)])


def _parts(windows: int, heads: int, tokens: int, *, whole: bool) -> Iterator[tuple[slice, slice]]:
    """Heads and queries to attend at a time, so that a CPU makes no larger bias than it caches."""
    each = windows * tokens * tokens
    some = heads if whole else max(1, CACHED_BIASES // each)
    rows = tokens if whole or each <= CACHED_BIASES else tokens * CACHED_BIASES // each
    for head in range(0, heads, some):
        for row in range(0, tokens, rows):
            yield slice(head, head + some), slice(row, row + rows)


def _linear(layer: nn.Linear, x: Tensor, *, gelu: bool = False) -> Tensor:
    """A linear layer, and the exact GELU behind it."""
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    half = x.dtype == layer.weight.dtype == torch.bfloat16
    if eager and half and x.device.type == "cpu" and _onednn_bfloat16():
        # oneDNN adds the bias and the GELU as it writes: F.linear takes a fifth longer for it.
        kind, form = ("gelu", "none") if gelu else ("none", "")
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(x, layer.weight, layer.bias, kind, [], form)
    return F.gelu(layer(x)) if gelu else layer(x)


@cache
def _onednn_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 on this processor at all; older ones have it from torch."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _norm(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """The package's LayerNorm2d on channels that come last."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _neck(neck: nn.Sequential, x: Tensor) -> Tensor:
    """(B, G, G, D) to the embedding (B, 256, G, G) float32; its memory is channels last."""
    narrow, first, mix, second = neck
    x = _norm(first, F.linear(x, narrow.get_parameter("weight").flatten(1)))
    x = F.conv2d(x.permute(0, 3, 1, 2), mix.get_parameter("weight"), padding=1).permute(0, 2, 3, 1)
    return _norm(second, x).float().permute(0, 3, 1, 2)


def _quadruple(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of stride and kernel 2: (..., C) to (..., 4, c), row by row."""
    weight, bias = conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.get_parameter("bias")
    return F.linear(x, weight, bias.repeat(4)).view(*x.shape[:-1], 4, -1)


def _among_tokens(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, real: Tensor, *, first: bool
) -> Tensor:
    """Attention of the tokens (N, L, 256) to each other; the first layer's is without residual."""
    module = layer.self_attn
    placed = queries if first else queries + tokens
    q, k, v = (
        project(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for project, x in (
            (module.q_proj, placed),
            (module.k_proj, placed),
            (module.v_proj, queries),
        )
    )
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
    found = module.out_proj(found.transpose(1, 2).flatten(2))
    return layer.norm1(found if first else queries + found)


def _look(module: TokenAttention, x: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """The package's attention of tokens x (N, L, 256) to the image (N, G * G, 256).

    The image is not projected: the tokens take the projections of keys and values upon them. That
    is half the work for a click, and as much for nine. The bias of the keys adds the same to all
    logits of a query, which softmax does not see.

    Args:
        placed: the image with its positions, for the keys.
    """
    heads = module.num_heads
    q = module.q_proj(x).unflatten(-1, (heads, -1))  # (N, L, H, c)
    asked = torch.einsum("nlhc,hcd->nhld", q, _by_head(module.k_proj, heads)) * q.shape[-1] ** -0.5
    weights = (asked.flatten(1, 2) @ placed.transpose(1, 2)).softmax(dim=-1)  # (N, H * L, G * G)
    found = (weights @ image).unflatten(1, (heads, -1))
    values = torch.einsum("nhld,hcd->nlhc", found, _by_head(module.v_proj, heads)).flatten(2)
    return module.out_proj(values + module.v_proj.bias)


def _tell(
    module: TokenAttention, image: Tensor, placed: Tensor, x: Tensor, queries: Tensor, real: Tensor
) -> Tensor:
    """The image (N, G * G, 256) and what the package's attention to the tokens adds to it.

    Projected as in `_look`; the last bias comes with the weights of a query, which sum to 1.

    Args:
        placed: the image with its positions.
        x: (N, L, 256) tokens for the keys, `queries` for the values.
        real: (N, L): others count for nothing.
    """
    heads, out = module.num_heads, module.out_proj
    k = module.k_proj(x).unflatten(-1, (heads, -1)) * (module.internal_dim // heads) ** -0.5
    v = module.v_proj(queries).unflatten(-1, (heads, -1))  # (N, L, H, c)
    asked = torch.einsum("nlhc,hcd->nhld", k, _by_head(module.q_proj, heads)).flatten(1, 2)
    offset = torch.einsum("nlhc,hc->nhl", k, module.q_proj.bias.view(heads, -1))
    offset = offset.masked_fill(~real[:, None], float("-inf")).flatten(1)[..., None]
    logits = torch.baddbmm(offset, asked, placed.transpose(1, 2))  # (N, H * L, G * G)
    weights = logits.unflatten(1, (heads, -1)).softmax(dim=2).flatten(1, 2)
    told = torch.einsum("nlhc,dhc->nhld", v, out.weight.view(-1, heads, v.shape[-1]))
    told = (told + out.bias / heads).flatten(1, 2)
    return torch.baddbmm(image, weights.transpose(1, 2), told)


def _by_head(layer: nn.Linear, heads: int) -> Tensor:
    """The weight of a projection to all heads, (H, c, 256)."""
    return layer.weight.unflatten(0, (heads, -1))


def build(tensors: Mapping[str, Tensor], file: Path) -> Sam:
    """A `Sam` of whatever size the tensors have, with them as its weights; in evaluation mode.

    Raises:
        CheckpointError: names or shapes are not those of a SAM with a ViT; `file` is named.
    """
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    try:
        with torch.device("meta"):  # no time for weights that are replaced
            sam = Sam(_encoder(tensors), *_decoder(tensors), mean, std)
    except KeyError as error:
        some = f"it has {', '.join(sorted(tensors)[:LISTED])} ..." if tensors else "it is empty"
        refuse(file, "is not a checkpoint of SAM", [f"{error.args[0]} is missing; {some}"])
    except (ValueError, TypeError, AssertionError, ZeroDivisionError, IndexError) as error:
        refuse(file, "is not a checkpoint of SAM", [f"its shapes do not fit: {error}"])
    fill(sam, tensors, file, "SAM")
    sam.pixel_mean, sam.pixel_std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    return sam.eval()


def _encoder(tensors: Mapping[str, Tensor]) -> ImageEncoderViT:
    """The encoder that the shapes speak of, without weights."""
    prefix = "image_encoder."
    width = tensors[prefix + "patch_embed.proj.weight"].shape[0]
    grid = tensors[prefix + "pos_embed"].shape[1]
    tables = [
        tensors[f"{prefix}blocks.{i}.attn.rel_pos_h"]
        for i in range(_count(tensors, prefix + "blocks."))
    ]
    sides = [(len(table) + 1) // 2 for table in tables]  # of what each block attends over
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
    """What makes masks of embeddings, as the shapes say, without weights."""
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
    """How many numbered modules the names begin with `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
