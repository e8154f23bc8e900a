"""The plan of a mask job: faults of manifests that only the job knows, each for its own video."""

import json
import socket

import pytest

from jobs.masks.plan import absolute_uri, plan_batch
from jobs.page.videos import relative_uri
from jobs.run.config import ConfigError
from jobs.storage.location import Location

ROW = {"object_id": 1, "frame": 0, "x": 1, "y": 1}


def planned(folder, *uris, name="m.jsonl", root=None, **more):
    manifest = folder / name
    lines = [
        json.dumps({"uri": uri, "video_id": f"v{n}", **ROW, **more}) for n, uri in enumerate(uris)
    ]
    manifest.write_text("\n".join(lines))
    return plan_batch([str(manifest)], root, "settings")


@pytest.fixture
def film(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"any content")
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("hidden", ["endpoint_override={}", "scheme=http&endpoint_override={}"])
def test_no_request_is_sent_where_a_manifest_says(tmp_path, film, monkeypatch, hidden):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        options = hidden.format(f"127.0.0.1:{server.getsockname()[1]}")
        plan = planned(
            tmp_path, f"s3://b/v.mp4?{options}", "s3://b/v.mp4?endpoint_overide=h", "film.mp4"
        )
        with pytest.raises(TimeoutError):
            server.accept()
    first, second = (plan.invalid[name][0].partition("m.jsonl: ")[2] for name in ("v0", "v1"))
    assert f"the options '{options}' are not read from a manifest; set AWS_ENDPOINT_URL" in first
    assert "has the option endpoint_overide; perhaps you meant endpoint_override" in second
    assert first.startswith("row 1: uri is ")
    assert [work.video_id for work in plan.work] == ["v2"]


def test_a_relative_uri_in_s3_is_a_key_whatever_it_ends_in():
    uri = absolute_uri(
        "v.mp4?endpoint_override=h", "s3://b/root?region=x", Location.parse("/m.csv")
    )
    assert Location.parse(uri) == Location("b/root/v.mp4?endpoint_override=h", True, "region=x")
    uri = absolute_uri("v.mp4?endpoint_override=h", "s3://b/root", Location.parse("/m.csv"))
    assert Location.parse(uri) == Location("b/root/v.mp4?endpoint_override=h", True)


def test_the_page_writes_no_options_into_a_manifest(tmp_path):
    place, root = Location.parse("s3://b/a/v.mp4?region=x"), Location.parse("s3://b/a?region=x")
    assert relative_uri(place, root) == "v.mp4"
    for base in (Location.parse(tmp_path), Location.parse("s3://b/a")):
        with pytest.raises(
            ConfigError, match="cannot be written to a manifest; set AWS_ENDPOINT_URL"
        ):
            relative_uri(place, base)


def test_films_with_question_marks(tmp_path, s3):
    for name in ("what?.mp4", "v.mp4?width=3"):
        (tmp_path / name).write_bytes(b"here")
        (Location.parse(s3) / name).write_bytes(b"there")
    plan = planned(tmp_path, "what?.mp4", "v.mp4?width=3", f"{s3}/what?.mp4", f"{s3}/v.mp4?width=3")
    assert plan.faults == []
    read = {work.video_id: Location.parse(work.uri).read_bytes() for work in plan.work}
    assert read == {"v0": b"here", "v1": b"here", "v2": b"there", "v3": b"there"}


def test_uris_that_no_disk_has_cost_only_their_own_video(tmp_path, film):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    odd = ["loop.mp4", str(tmp_path / "loop.mp4"), "a" * 300 + ".mp4", "b/" * 2000 + "c.mp4",
           "s3://b//v.mp4", "gs://b/v.mp4", "nothing.mp4", "."]  # fmt: skip
    plan = planned(tmp_path, *odd, "film.mp4")
    assert [work.video_id for work in plan.work] == [f"v{len(odd)}"]
    assert {name: len(faults) for name, faults in plan.invalid.items()} == {
        f"v{n}": 1 for n in range(len(odd))
    }


def test_an_id_of_two_manifests_names_the_way_out(tmp_path, film):
    one = planned(tmp_path, "film.mp4")
    assert one.faults == []
    (tmp_path / "other.csv").write_text("uri,video_id,object_id,frame,x,y\nfilm.mp4,v0,1,0,1,1\n")
    plan = plan_batch([str(tmp_path / "m.jsonl"), str(tmp_path / "other.csv")], None, "settings")
    assert "m.jsonl does not contain; a column video_id can give another one" in plan.faults[0]
