"""Weights of classifiers by path or s3://: downloaded to this node, then read."""

from jobs.storage.cache import localize
from jobs.storage.location import Location
from jobs.weights.files import export_of
from vit.weights import ABOUT, FILE, Weights, WeightsError, read


def load_weights(text: str) -> Weights:
    """Read the weights that `text` names: an export, a run's folder or a safetensors file.

    From S3 only the weights and their model.json are downloaded, once per node.

    Raises:
        WeightsError: the weights cannot be read.
        StorageError: there is nothing at `text`, or storage refused.
    """
    place = export_of(Location.parse(text), WeightsError)
    if place.local_path is None and place.name == FILE and (place.parent / ABOUT).exists():
        place = place.parent
    return read(localize(place))
