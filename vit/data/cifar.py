"""CIFAR-10 and CIFAR-100 as their authors packed them: pickles in a folder or an archive."""

import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from vit.data.decode import DataError, Encoded
from vit.data.reader import Ints, Survey, fail, reading


@dataclass(frozen=True)
class _Cifar:
    """File names and keys of a CIFAR archive (Krizhevsky 2009), as in torchvision's cifar.py."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    class_key: str
    label_key: str
    classes: str
    """Names of the classes by label, separated by white space, for data without names."""


CIFAR = {
    "cifar10": _Cifar(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        test=("test_batch",),
        meta="batches.meta",
        class_key="label_names",
        label_key="labels",
        classes="airplane automobile bird cat deer dog frog horse ship truck",
    ),
    "cifar100": _Cifar(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        class_key="fine_label_names",
        label_key="fine_labels",
        classes="""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
        bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
        cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
        hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
        shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
        table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm""",
    ),
}


def find_cifar(name: str, paths: Sequence[Path]) -> "_Batches | None":
    """Find the batches of `name` in a folder or an archive; None if they are elsewhere."""
    layout = CIFAR[name]
    if len(paths) == 1:
        path = paths[0]
        for folder in (path, path / layout.folder):
            if any((folder / batch).is_file() for batch in (*layout.train, *layout.test)):
                return _Batches(folder, layout)
        for archive in (path, path / layout.archive):
            if archive.is_file() and archive.suffix != ".parquet":
                return _Batches(archive, layout)
    return None


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays, numbers, text, lists and dicts; calls nothing else that a file names."""

    # numpy has moved these between modules; they are found by name only.
    allowed: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.empty(0).__reduce__()[0],
        "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed name: of numpy's arrays, or of how older protocols write bytes."""
        if module.split(".")[0] == "numpy" and name in self.allowed:
            return self.allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs")


def _unpickle(file: IO[bytes], where: str) -> dict[str, Any]:
    try:
        content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise all kinds
        raise DataError(f"{where} is not a pickle of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} holds {type(content).__name__}; CIFAR's files hold a dict")
    return content


def _batch_labels(content: dict[str, Any], key: str, where: str) -> Ints:
    """Check a batch and return its labels, (N,) int64."""
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or (pixels.dtype, *pixels.shape[1:]) != (np.uint8, 3072):
        raise DataError(f"{where}: data is not an array of uint8 of shape (N, 3072)")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        keys = ", ".join(map(str, content))
        raise DataError(f"{where}: {key} is not a list of integers; the file has the keys {keys}")
    if len(labels) != len(pixels):
        raise DataError(f"{where}: {len(labels)} {key} for {len(pixels)} rows of data")
    return np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class _Batches:
    """CIFAR's pickles in a folder, or in the archive, which is read from front to back."""

    path: Path
    layout: _Cifar
    threads = 1

    def files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        names = (*self.layout.train, *self.layout.test, self.layout.meta)
        return [self.path / name for name in names if (self.path / name).exists()]

    def survey(self) -> Survey:
        layout = self.layout
        classes, found = tuple(layout.classes.split()), {}
        for name, where, content in self._read(*layout.train, *layout.test, layout.meta):
            if name == layout.meta:
                classes = tuple(map(str, content.get(layout.class_key, classes)))
            else:
                found[name] = (where, _batch_labels(content, layout.label_key, where))
        missing = [name for name in (*layout.train, *layout.test) if name not in found]
        fail(missing, f"{self.path}: files of {layout.folder} missing")
        sets = {"train": layout.train, "test": layout.test}
        return Survey(
            classes, {key: [found[name] for name in names] for key, names in sets.items()}
        )

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        for file in self.layout.train if name == "train" else self.layout.test:
            for _, where, content in self._read(file):
                pixels = content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield from ((f"{where}, row {row}", image) for row, image in enumerate(pixels))

    def _read(self, *names: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Unpickle those of `names` that exist; yields name, place and content."""
        with reading(self.path):
            for name, file in self._streams(names):
                yield name, f"{self.path}/{name}", _unpickle(file, f"{self.path}/{name}")

    def _streams(self, names: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
        if self.path.is_dir():
            for name in names:
                if (self.path / name).is_file():
                    with (self.path / name).open("rb") as file:
                        yield name, file
            return
        wanted = {f"{self.layout.folder}/{name}": name for name in names}
        with tarfile.open(self.path) as archive:
            while wanted and (member := archive.next()):
                name = wanted.pop(member.name.removeprefix("./"), "")
                stream = archive.extractfile(member) if name else None
                if stream:
                    yield name, stream
