"""Segmenters by name, path or s3://: their weights are downloaded to this node, then loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

import masking
from jobs.run.submitted import submission_hint
from jobs.storage.cache import fetch, localize
from jobs.storage.location import Location
from jobs.weights.files import export_of
from masking.sam2.published import PUBLISHED, download, suggestion
from masking.sam2.weights import CONFIG, load, read
from masking.segmenter.sam import Precision, Segmenter, SegmenterWeightsError
from masking.segmenter.weights import FILE
from masking.tracking.trust import Calibration

SOURCE = "https://dl.fbaipublicfiles.com/segment_anything"
"""Where Meta publishes SAM's checkpoints."""


@dataclass(frozen=True)
class Published:
    """A checkpoint of SAM that is downloaded by its name."""

    file: str
    """Name of the file below `SOURCE`."""
    sha256: str
    """SHA-256 of the file, in hex."""


OFFICIAL = {
    "vit_b": Published(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Published(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Published(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
"""SAM's checkpoints by their short names; 375 MB, 1.2 GB and 2.6 GB."""
OFFICIAL_SIDE = 1024
"""Side of the square input of Meta's SAM, in pixels."""
NAMES = ("mini", *OFFICIAL, *PUBLISHED)
"""Weights that have a name; all others are given as a path."""


def load_segmenter(
    text: str, device: torch.device, precision: Precision = "auto", *, compile: bool = False
) -> Segmenter:
    """Load the segmenter whose weights `text` names.

    Args:
        text: a name of `NAMES`; or a path or s3:// of what `masking.sam2.weights.load` takes, or of
            the folder of a run.
        device: the device it computes on.
        precision: see `masking.sam2.weights.load`.
        compile: see `masking.sam2.weights.load`.

    Raises:
        SegmenterWeightsError: there is nothing at `text`, or it cannot be used.
        StorageError: a download failed, or is not the file that was published.
    """
    return load(locate(text), device, precision, compile=compile)


def locate(text: str) -> Path:
    """Return a file or folder on this node with the weights that `text` names.

    Weights with a name are downloaded once per node, however many processes want them. SAM's
    checkpoints are in the cache of `jobs.storage.cache`, where an interrupted download is resumed
    and a file with another checksum is deleted; the others in the cache of `huggingface_hub`.

    Raises:
        SegmenterWeightsError: there is nothing at `text`.
        StorageError: a download failed, or is not the file that was published.
    """
    if text == "mini":
        return _mini()
    if published := OFFICIAL.get(text):
        return fetch(f"{SOURCE}/{published.file}", sha256=published.sha256)
    if text in PUBLISHED:
        return download(text, lambda line: print(line, flush=True))
    place = Location.parse(text)
    if place.local_path is not None and not place.local_path.exists():
        raise SegmenterWeightsError(
            f"weights {text}: neither a name ({', '.join(NAMES)}) nor a file or folder that exists"
            + suggestion(text, NAMES)
            + submission_hint()
        )
    place = export_of(place, SegmenterWeightsError)
    if place.local_path is None and place.name == FILE and (place.parent / CONFIG).exists():
        place = place.parent  # weights of transformers need what lies beside them
    return localize(place)


def announce(weights: str) -> None:
    """Print what weights with a name may be used for; called once per job."""
    if weights == "mini":
        print(
            "the weights mini are for research only (masking/weights/README.md); for other use,"
            " choose --weights vit_b, 375 MB, downloaded once (jobs.finetune: --init-weights vit_b)"
        )
    if published := PUBLISHED.get(weights):
        print(f"the weights {weights} are {published.repository}; licence: {published.licence}")


def judged_by(weights: str) -> str:
    """Return what states, scores and qualities of masks by these weights follow from, in words.

    Raises:
        SegmenterWeightsError: there is nothing at `weights`, or it cannot be read.
    """
    contents = read(locate(weights))
    if contents.config is not None:
        return "the model's own object score and predicted IoU, which were not calibrated"
    if Calibration.of(contents.metadata) is None:
        return "numbers that were fitted for mini without its memory, as these weights have none"
    return "numbers that were fitted for these weights"


def _mini() -> Path:
    """Return the file of mini's weights, which is part of the package."""
    file = Path(masking.__file__).parent / "weights" / "mini.safetensors"
    if not file.exists():
        raise SegmenterWeightsError(
            f"weights mini: {file} is missing, although it is part of Patchray; reinstall it,"
            " or choose other weights"
        )
    return file
