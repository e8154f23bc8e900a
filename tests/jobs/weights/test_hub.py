"""Weights with a name on the Hugging Face hub, from a server that answers as it does."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch
from safetensors.torch import save_file

from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.network import starting_network
from jobs.weights.segmenter import NAMES, announce, load_segmenter, locate
from masking.sam2.published import PUBLISHED
from masking.segmenter.sam import SegmenterWeightsError
from tests.hub import Hub
from tests.masking.sam2.tiny import tiny, tiny_config

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of transformers with a tiny SAM 2."""
    folder = tmp_path_factory.mktemp("repository")
    save_file(tiny().model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(tiny_config("sam2_video")))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub's client of the test's own, and no waiting between attempts."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "hub"


@pytest.fixture
def hub(files, cache, monkeypatch):
    """A hub with the tiny SAM 2 where sam2.1-tiny is looked for."""
    hub = Hub()
    hub.add(PUBLISHED["sam2.1-tiny"], files)
    point_to(hub.url, monkeypatch)
    yield hub
    hub.stop()


def point_to(address, monkeypatch):
    """Do what HF_ENDPOINT does when it is set before Python starts."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(name="sam2.1-tiny"):
    """Return the one line that says why weights cannot be had."""
    with pytest.raises(SegmenterWeightsError) as caught:
        locate(name)
    (line,) = str(caught.value).splitlines()
    published = PUBLISHED[name]
    assert line.startswith(f"weights {name}: ")
    by_hand = f"`hf download {published.repository} config.json model.safetensors --revision"
    assert f"{by_hand} {published.revision} --local-dir FOLDER`" in line
    return line


def test_names_and_their_revisions():
    assert set(PUBLISHED) <= set(NAMES)
    for published in PUBLISHED.values():
        assert len(published.revision) == 40
        assert (published.licence == "Apache-2.0") is (published.repository != "facebook/sam3")


def test_a_name_is_downloaded_once_with_its_licence(hub, files, cache, capsys):
    segmenter = load_segmenter("sam2.1-tiny", CPU, "float32")
    said = capsys.readouterr().out
    assert (
        "downloading sam2.1-tiny, 156 MB, from facebook/sam2.1-hiera-tiny (revision de431c4)"
        in said
    )
    assert "licence: Apache-2.0" in said
    folder = locate("sam2.1-tiny")
    assert folder.is_relative_to(cache)
    assert [file for file, _ in hub.gets] == ["config.json", "model.safetensors"]
    assert capsys.readouterr().out == ""  # nothing is downloaded again
    expected = torch.cat([x.flatten() for x in tiny().model.state_dict().values()])
    found = torch.cat([x.flatten() for x in segmenter.network.model.state_dict().values()])
    assert torch.equal(found, expected)


def test_a_download_that_breaks_off_resumes(hub, files, monkeypatch):
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what it writes at a time
    hub.truncate = [1 << 20, 5000, 7000]
    content = (locate("sam2.1-tiny") / "model.safetensors").read_bytes()
    assert content == (files / "model.safetensors").read_bytes()
    wanted = [part for file, part in hub.gets if file == "model.safetensors"]
    assert wanted == [None, "bytes=5000-", "bytes=12000-"]


def test_processes_that_ask_at_once_download_once(hub, cache):
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(2), context.SimpleQueue()

    def ask():
        start.wait()
        found.put(str(locate("sam2.1-tiny")))

    children = [context.Process(target=ask) for _ in range(2)]
    for child in children:
        child.start()
    (folder,) = {found.get() for _ in children}
    for child in children:
        child.join()
    assert sorted(file for file, _ in hub.gets) == ["config.json", "model.safetensors"]
    assert (Path(folder) / "model.safetensors").exists()


def test_a_gate_that_is_not_opened(hub):
    hub.gated.add("facebook/sam3")
    line = refused("sam3-tracker")
    assert "the hub has not opened facebook/sam3 to you (HTTP 401)" in line
    assert "accept Meta's terms" in line
    assert "HF_TOKEN" in line


def test_what_a_mirror_lacks(hub):
    assert f"{hub.url} has no facebook/sam2.1-hiera-large" in refused("sam2.1-large")
    published = PUBLISHED["sam2.1-tiny"]
    del hub.files[published.repository, published.revision, "model.safetensors"]
    assert f"{hub.url} has no model.safetensors of revision {published.revision}" in refused()
    moved = {(name, "main", file): data for (name, _, file), data in hub.files.items()}
    hub.files = moved
    assert "a mirror may lack it, change HF_ENDPOINT" in refused("sam2.1-tiny")


def test_without_a_network(cache, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    line = refused()
    assert f"not in the cache {cache}, and http://127.0.0.1:9 cannot be reached (" in line
    assert "set HF_ENDPOINT to the address of a mirror" in line
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it" in refused()


def test_offline_with_the_files_in_the_cache(hub, monkeypatch):
    folder = locate("sam2.1-tiny")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert locate("sam2.1-tiny") == folder
    assert len(hub.gets) == 2


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sam2.1-tinny", "sam2.1-tiny"),
        ("sam2.1_hiera_large", "sam2.1-large"),
        ("/somewhere/facebook/sam2.1-hiera-base-plus", "sam2.1-base-plus"),
        ("EdgeTAM", "edgetam"),
        ("vit-h", "vit_h"),
    ],
)
def test_a_name_that_does_not_exist(text, meant):
    with pytest.raises(SegmenterWeightsError, match=f", perhaps you meant {meant}$"):
        locate(text)


def test_licences_are_announced(capsys):
    announce("sam2.1-small")
    announce("sam3-tracker")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "the weights sam2.1-small are facebook/sam2.1-hiera-small; licence: Apache-2.0"
    assert "Meta's SAM License, which is not an open-source licence" in second


def test_finetune_does_not_train_them(files):
    message = r"jobs\.finetune does not train models with a memory"
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(data=("x",), out="y", init_weights="edgetam")
    config = FinetuneConfig(data=("x",), out="y", init_weights=str(files))
    with pytest.raises(ConfigError, match=message):
        starting_network(config)


def test_other_weights_do_without_transformers():
    """It takes seconds to import, as does the hub's client."""
    code = (
        "import sys, torch, jobs.mask, jobs.prompt, jobs.click, jobs.weights.segmenter as s;"
        "s.load_segmenter('mini', torch.device('cpu'));"
        "sys.exit(bool({'transformers', 'huggingface_hub', 'timm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
