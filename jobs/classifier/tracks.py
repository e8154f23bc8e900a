"""What votes over the images of tracks say: objects of videos, each with one class."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vit.votes import Votes


def tracks_report(
    ballots: Mapping[str, Votes | None],
    totals: Mapping[str, Tensor],
    classes: Sequence[str],
    names: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the figures of tracks: counts, and what votes over the images say of each.

    Args:
        ballots: the tracks of each set.
        totals: the votes, as `measure` returns them.
        classes: names of the classes.
        names: ids of video and object of all tracks of the data set.
    """
    table = []
    for name, total in totals.items():
        votes = ballots[name]
        assert votes is not None
        most = total.max(dim=1)
        columns = (votes.names, votes.labels, most.indices, votes.frames, most.values)
        for number, label, found, frames, agree in zip(*columns, strict=True):
            table.append(
                {
                    "video_id": names[number][0],
                    "object_id": names[number][1],
                    "class": classes[label],
                    "predicted": classes[found],
                    "frames": int(frames),
                    "agree": int(agree),
                }
            )
    correct = sum(row["class"] == row["predicted"] for row in table)
    return {"accuracy": correct / len(table), "n": len(table), "correct": correct, "table": table}
