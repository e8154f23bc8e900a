"""Names of objects that a classifier gave them, for exports that have names."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.run.config import ConfigError
from jobs.storage.location import Location

_COLUMNS = ("video_id", "object_id", "class")
_KINDS = {"video_id": pa.string(), "object_id": pa.int64(), "class": pa.string()}


def read_names(place: Location) -> dict[str, dict[int, str]]:
    """Return the classes of tracks by video and object id; tracks without a class are left out.

    Args:
        place: the `--out` of a `jobs.predict` whose `--data` was a mask run.

    Raises:
        ConfigError: there is no table of tracks, or it has other columns.
        StorageError: it cannot be read.
    """
    files = [place / f"tracks.{form}" for form in ("parquet", "csv")]
    file = next((each for each in files if each.exists()), None)
    if file is None:
        raise ConfigError(
            f"--names {place}: there is no tracks.parquet or tracks.csv; give the --out of"
            " `jobs.predict --data RUN`, RUN the --out of this job, once it is done"
        )
    try:
        with file.open() as stream:
            if file.name.endswith(".parquet"):
                table = pq.read_table(stream, columns=list(_COLUMNS))
            else:
                table = pyarrow.csv.read_csv(
                    stream,
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=list(_COLUMNS), column_types=_KINDS,
                        strings_can_be_null=True,
                    ),
                )  # fmt: skip
            table = table.cast(pa.schema(list(_KINDS.items())))
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"--names {file} is no table of tracks: {error}; expected the columns"
            f" {', '.join(_COLUMNS)}, as jobs.predict writes them"
        ) from error
    names: dict[str, dict[int, str]] = {}
    for row in table.to_pylist():
        if row["class"] is not None and row["object_id"] is not None:
            names.setdefault(row["video_id"], {})[row["object_id"]] = row["class"]
    return names
