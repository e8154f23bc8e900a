"""Files of weights: which of a run's files hold them, and a hash of their tensors."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from jobs.storage.location import Location
from vit.weights import FILE


def export_of(place: Location, error: type[Exception]) -> Location:
    """Return the export/ in the folder of a run in object storage; any other place as it is.

    So only the weights are downloaded, without the checkpoints beside them. Local folders are
    returned as they are. Raises `error` for a run without an export.
    """
    if place.local_path is not None:
        return place
    if (place / "export" / FILE).exists():
        return place / "export"
    if (place / "checkpoints").list() and not (place / FILE).exists():
        raise error(f"{place} is a run without an export/: run its command again to finish it")
    return place


def fingerprint(header: str, tensors: Mapping[str, Tensor], *, shapes: bool) -> str:
    """Return the SHA-256, in hex, of `header` and of all tensors in order of their names.

    With `shapes`, dtypes and shapes count beside names and bytes. The keys of predictions have
    always been computed without them, those of masks with them.
    """
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        label = f"{name} {tensor.dtype} {tuple(tensor.shape)}" if shapes else name
        digest.update(label.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
