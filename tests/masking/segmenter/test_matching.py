"""The part of `mini` that follows objects: where it starts, and what memory expects."""

import pytest
import torch

from masking.segmenter.matching import MAPS, compete, confidence, distances, weights
from masking.segmenter.mini import Mini
from masking.segmenter.prompt_maps import Prompt


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Mini(remembers=True).eval()


def prompt(n, h, w):
    return Prompt(
        torch.tensor([[[20.0, 30.0]]]).expand(n, 1, 2),
        torch.ones(n, 1, dtype=torch.int64),
        torch.full((n, 4), torch.nan),
        torch.randn(n, h // 4, w // 4),
    )


@torch.no_grad()
def test_it_starts_with_the_single_mask_of_the_decoder_of_prompts(network):
    network.memory.start_from(network.encoder, network.decoder, network.config)
    features = network.encode(torch.rand(2, 3, 64, 96) * 255)
    given = prompt(2, 64, 96)
    logits, scores = network.decoder(features, given)
    for maps in (torch.zeros(2, MAPS, 8, 12), torch.rand(2, MAPS, 8, 12)):
        followed, score = network.memory.decoder(features, given, maps)
        torch.testing.assert_close(followed, logits[:, :1])
        assert score.shape == scores[:, :1].shape
    keys = network.memory.matching(features)
    torch.testing.assert_close(keys, features[4])


@torch.no_grad()
def test_a_cell_has_the_weight_one_for_itself_and_none_for_what_is_far(network):
    keys = network.memory.matching(network.encode(torch.rand(1, 3, 96, 128) * 255))
    flat = keys[0].flatten(1).T
    found = weights(flat, flat, distances((12, 16), flat.device))
    torch.testing.assert_close(found.diagonal(), torch.ones(192))
    assert found[0, 191] < 1e-10
    torch.testing.assert_close(confidence(found.diagonal()), torch.ones(192))


def test_objects_of_a_clip_share_each_pixel():
    logits = torch.randn(5, 4, 6) * 3
    clips = torch.tensor([0, 0, 1, 0, 2])
    rivals = (clips[:, None] == clips) & ~torch.eye(5, dtype=torch.bool)
    found = torch.sigmoid(compete(logits, rivals))
    odds = logits.exp()
    total = 1 + odds[[0, 1, 3]].sum(dim=0)
    torch.testing.assert_close(found[[0, 1, 3]], odds[[0, 1, 3]] / total)
    torch.testing.assert_close(found[[2, 4]], torch.sigmoid(logits[[2, 4]]))
