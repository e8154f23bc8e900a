"""Weights by path or s3://: brought to this node, then read."""

from jobs.storage.cache import localize
from jobs.storage.location import Location
from vit.weights import ABOUT, FILE, Weights, WeightsError, read


def load_weights(text: str) -> Weights:
    """Read the weights that `text` names: an export, a run's folder or a safetensors file.

    Of what lies in S3 only the weights and their model.json are copied, once a node.

    Raises:
        WeightsError: what is there cannot be read.
        StorageError: nothing is there, or storage refused.
    """
    return read(localize(_smallest(Location.parse(text))))


def _smallest(place: Location) -> Location:
    """The export in a run's folder; the folder of a file that has a model.json beside it."""
    if place.local_path is not None:
        return place
    if (place / "export" / FILE).exists():
        return place / "export"
    if place.name != FILE and (place / "checkpoints").list() and not (place / FILE).exists():
        raise WeightsError(f"{place} is a run without an export/: let it come to its end first")
    folder = place.parent
    return folder if place.name == FILE and (folder / ABOUT).exists() else place
