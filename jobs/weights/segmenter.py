"""Segmenters by name, path or s3://: their weights brought to this node, then loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

import masking
from jobs.run.submitted import submission_hint
from jobs.storage.cache import fetch, localize
from jobs.storage.location import Location
from masking.segmenter.sam import Precision, Segmenter, SegmenterWeightsError, load
from masking.segmenter.weights import FILE

SOURCE = "https://dl.fbaipublicfiles.com/segment_anything"
"""Where Meta publishes SAM's checkpoints."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that is fetched by name."""

    file: str
    """Name below `SOURCE`."""
    sha256: str
    """Of the file, in hex."""


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
"""SAM's checkpoints, 375 MB, 1.2 GB and 2.6 GB."""
OFFICIAL_SIDE = 1024
"""Pixels of the squares that Meta's SAM takes."""
NAMES = ("mini", *OFFICIAL)


def load_segmenter(
    text: str, device: torch.device, precision: Precision = "auto", *, compile: bool = False
) -> Segmenter:
    """Load the segmenter whose weights `text` names.

    Args:
        text: mini, vit_b, vit_l or vit_h; or a path or s3:// of a checkpoint of SAM, of a
            safetensors file, or of the folder of a run.
        device: where it computes.
        precision: as of `masking.segmenter.sam.load`.
        compile: as there.

    Raises:
        SegmenterWeightsError: nothing is there, or it cannot be used.
        StorageError: a download failed, or is another file than was published.
    """
    return load(locate(text), device, precision, compile=compile)


def locate(text: str) -> Path:
    """A file or folder on this node with the weights that `text` names, fetched if need be.

    An official checkpoint is fetched once a node, however many processes ask; one that was broken
    off goes on where it stopped; what does not have its checksum is deleted.
    """
    if text == "mini":
        return _mini()
    if published := OFFICIAL.get(text):
        return fetch(f"{SOURCE}/{published.file}", sha256=published.sha256)
    place = Location.parse(text)
    if place.local_path is not None and not place.local_path.exists():
        raise SegmenterWeightsError(
            f"weights {text}: neither a name ({', '.join(NAMES)}) nor a file or folder that is here"
            + submission_hint()
        )
    return localize(_smallest(place))


def announce(weights: str) -> None:
    """Say in a line what `mini` may be used for; called once a job."""
    if weights == "mini":
        print(
            "mini: for research only (masking/weights/README.md); for other use:"
            " --weights vit_b, 375 MB, fetched once (jobs.finetune: --init-weights vit_b)"
        )


def _smallest(place: Location) -> Location:
    """Of a run's folder in S3 its export: checkpoints need not be copied."""
    if place.local_path is not None or not (place / "checkpoints").list():
        return place
    if not (place / "export" / FILE).exists():
        raise SegmenterWeightsError(
            f"{place} is a run without an export/: let it come to its end first"
        )
    return place / "export"


def _mini() -> Path:
    file = Path(masking.__file__).parent / "weights" / "mini.safetensors"
    if not file.exists():
        raise SegmenterWeightsError(
            f"weights mini: {file} is not there, although it is part of this project; install it"
            " anew, or name other weights"
        )
    return file
