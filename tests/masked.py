"""Short videos with a manifest, their plan, and a worker of `jobs.mask` without Ray."""

import json
from contextlib import nullcontext

import torch

from jobs import mask
from jobs.masks import batch
from jobs.masks import plan as mask_plan
from jobs.masks.video import Masker
from masking.tracking.state import TrackConfig
from tests.masking.tracking.test_masking import film
from tests.moving import picture

CPU = torch.device("cpu")
HERE = {"node": lambda: "here", "alive": lambda name: True}
"""What a worker has to know of nodes, where there is one."""


def write_clips(folder):
    """Five short videos, one of them none, and their manifest; returns the folder."""
    lines = ["uri,object_id,frame,x,y,label,camera"]
    for number in range(4):
        clip = [picture({1: (30 + 2 * t, 40, 13)}, seed=number) for t in range(4 + number)]
        film(folder / f"c{number}.mp4", clip)
        lines.append(f"c{number}.mp4,1,{number % 2},{30 + 2 * (number % 2)},40,1,north")
    (folder / "none.mp4").write_text("no video")
    lines.append("none.mp4,1,0,3,4,positive,")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    return folder


def plan(clips, settings, name="clicks.csv", root=None):
    return mask_plan.plan_batch([str(clips / name)], root, settings)


def masker(out, clips, settings, **more):
    return Masker(
        str(out), "token", more.pop("weights", "mini"), settings, "float32", TrackConfig(), 1, CPU,
        600.0,
        **(HERE | more),
    )  # fmt: skip


def mask_without_ray(monkeypatch):
    """Have `jobs.mask` mask its videos one by one in this process; its other stages are as ever."""

    def mask_all(config, out, todo, wanted, stop):
        worker = Masker(
            str(out), "token", config.weights, wanted, config.precision, config.track, 1, CPU,
            config.time_limit, polishing=config.polish, **HERE,
        )  # fmt: skip
        records = [json.loads(worker({"work": work.to_json()})["record"]) for work in todo]
        publisher = batch.Publisher(out, out / ".parts/token")
        return [publisher.publish(record) for record in records]

    monkeypatch.setattr(mask, "mask_all", mask_all)
    monkeypatch.setattr(mask.connect, "connect", nullcontext)
