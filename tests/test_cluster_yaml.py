"""cluster.yaml, checked without AWS: by Ray's own checks, and for faults that they miss."""

import copy
import re
import subprocess
import tomllib
from pathlib import Path

import botocore.session
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
INSTALL = "pip install --no-cache-dir --require-hashes --no-deps"
LOCKS = ("requirements.lock", "requirements-torch.lock")
ON_THE_USERS_MACHINE = {"~/.ray/auth_token"}  # the comments in cluster.yaml say how to create it


def pinned(package):
    """Return the version of a package in requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text()
    (version,) = re.findall(rf"^{package}(?:\[[^]]*\])?==([^\s;\\]+)", lock, flags=re.MULTILINE)
    return version


def ray_accepts(config):
    """Run Ray's own checks on a copy, as they change their argument."""
    validate_config(prepare_config(copy.deepcopy(config)))


def unknown_keys(value, shape, where):
    """Yield the faults of a value against a botocore shape: keys, types, allowed strings."""
    kinds = {"structure": dict, "map": dict, "list": list, "string": str, "boolean": bool}
    if shape.type_name in kinds and not isinstance(value, kinds[shape.type_name]):
        yield f"{where} is {value!r}, not a {shape.type_name}"
    elif shape.type_name == "structure":
        for key, item in value.items():
            if key in shape.members:
                yield from unknown_keys(item, shape.members[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is not a parameter of EC2's RunInstances"
    elif shape.type_name == "list":
        for item in value:
            yield from unknown_keys(item, shape.member, f"{where}[]")
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        yield f"{where} {value!r} is not one of EC2's values"


def image_faults(config):
    tag = rf"rayproject/ray:{re.escape(pinned('ray'))}-py(\d)(\d+)-(cpu|gpu|cu\d+)"
    tag += r"(@sha256:[0-9a-f]{64})?"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    pythons = set()
    for key in ("head_image", "worker_image"):
        image = config.get("docker", {}).get(key, "")
        match = re.fullmatch(tag, image)
        if not match:
            yield f"docker.{key} {image!r} is not an image of the pinned Ray"
            continue
        pythons.add(match.groups()[:2])
        if match[1] != "3" or not int(low) <= int(match[2]) < int(high):
            yield f"docker.{key} {image!r} has a Python that the project does not run on"
    if len(pythons) > 1:
        yield "docker: head and workers differ in Python"


def node_faults(config):
    shape = botocore.session.get_session().get_service_model("ec2").shape_for("RunInstancesRequest")
    for name, kind in config["available_node_types"].items():
        node, where = kind["node_config"], f"{name}.node_config"
        yield from unknown_keys(node, shape, where)
        head = name == config["head_node_type"]
        if head and kind["resources"].get("CPU") != 0:
            yield f"{name}: CPU of the head is not 0"
        if head and "InstanceMarketOptions" in node:
            yield f"{name}: the head is not on demand"
        if not head and kind.get("min_workers") != 0:
            yield f"{name}: min_workers is not 0"
        if not head and not kind["resources"].get("GPU"):
            yield f"{name}: resources have no GPU"
        if "IamInstanceProfile" not in node:
            yield f"{name}: no IamInstanceProfile, so no S3"
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: IMDSv2 is not required"


def command_faults(config):
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        if not isinstance(config.get(key), list):
            yield f"{key} is not a list"
        elif key != "setup_commands" and not any(
            re.search(r"RAY_AUTH_MODE=token ray start\b", line) for line in config[key]
        ):
            yield f"{key}: ray starts without RAY_AUTH_MODE"
    if not any("RAY_JOB_STOP_WAIT_TIME_S=" in x for x in config.get("head_start_ray_commands", [])):
        yield "head_start_ray_commands: a stopped job has Ray's 3 s to save"
    mounts = config.get("file_mounts", {})
    for source in set(mounts.values()) - ON_THE_USERS_MACHINE:
        if not (ROOT / source).exists():
            yield f"file_mounts: {source} does not exist"
    locks = [path for path, source in mounts.items() if source in LOCKS]
    install = " ".join([INSTALL, *(f"-r {path}" for path in locks)])
    if len(locks) < len(LOCKS) or install not in config.get("setup_commands", []):
        yield "setup_commands do not install requirements.lock and check its hashes"


def faults(config):
    """Return the faults that Ray's checks miss, a line for each."""
    needed = ("cluster_name", "max_workers", "idle_timeout_minutes")  # Ray has defaults for them
    lines = [f"{key} is absent" for key in needed if key not in config]
    if not config["provider"].get("region"):
        lines.append("provider.region is absent")
    return [*lines, *image_faults(config), *node_faults(config), *command_faults(config)]


def changed(path, value):
    """Return the config with one value replaced, or removed if the new value is None."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split("/")
    inner = config
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return config


def test_ray_accepts_it():
    ray_accepts(CONFIG)


def test_it_has_no_faults_that_ray_misses():
    assert faults(CONFIG) == []


GPU = "available_node_types/gpu"
NODE = f"{GPU}/node_config"


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("docker/head_image", "rayproject/ray:2.59.0-py311-cpu", "image of the pinned Ray"),
        ("docker/worker_image", "rayproject/ray:2.60.0-py311-gpus", "image of the pinned Ray"),
        ("docker/worker_image", "rayproject/ray:2.60.0-gpu", "image of the pinned Ray"),
        ("docker/worker_image", "rayproject/ray:2.60.0-py39-gpu", "does not run on"),
        ("docker/worker_image", "rayproject/ray:2.60.0-py312-gpu", "differ in Python"),
        (f"{NODE}/InstanceTypes", "g5.xlarge", "InstanceTypes is not a parameter"),
        (f"{NODE}/InstanceType", "g5.xlrge", "'g5.xlrge' is not one of"),
        (f"{NODE}/InstanceMarketOptions/MarketType", "Spot", "'Spot' is not one of"),
        (f"{NODE}/IamInstanceProfile", "patchray-worker", "not a structure"),
        (f"{NODE}/IamInstanceProfile", None, "no S3"),
        (f"{NODE}/MetadataOptions", None, "IMDSv2 is not required"),
        (f"{NODE}/MetadataOptions", {"HttpTokens": "optional"}, "IMDSv2 is not required"),
        (f"{NODE}/MetadataOptions/HttpTokens", "always", "'always' is not one of"),
        (f"{NODE}/BlockDeviceMappings", [{"Ebs": {"Size": 200}}], "Ebs.Size is not a parameter"),
        (f"{GPU}/min_workers", 1, "min_workers is not 0"),
        (f"{GPU}/resources", {"CPU": 4}, "no GPU"),
        ("available_node_types/head/resources/CPU", 4, "CPU of the head"),
        (
            "available_node_types/head/node_config/InstanceMarketOptions",
            {"MarketType": "spot"},
            "not on demand",
        ),
        (
            "file_mounts//home/ray/requirements.lock",
            "requirement.lock",
            "requirement.lock does not exist",
        ),
        ("setup_commands", "pip install -r requirements.lock", "setup_commands is not a list"),
        ("setup_commands", [], "do not install requirements.lock"),
        ("setup_commands", ["pip install -r /home/ray/requirements.lock"], "check its hashes"),
        ("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"], "RAY_AUTH_MODE"),
        ("head_start_ray_commands", ["ray start --head"], "RAY_AUTH_MODE"),
        ("provider/region", None, "region"),
        ("cluster_name", None, "cluster_name"),
        ("max_workers", None, "max_workers"),
        ("idle_timeout_minutes", None, "idle_timeout_minutes"),
    ],
)
def test_a_fault_that_ray_misses_is_found(path, value, fault):
    if path.startswith("file_mounts/"):  # its keys have slashes
        config = copy.deepcopy(CONFIG)
        config["file_mounts"][path.removeprefix("file_mounts/")] = value
    else:
        config = changed(path, value)
    assert any(fault in line for line in faults(config)), faults(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("idle_timeout", 10),
        ("max_workers", "8"),
        (f"{GPU}/min_workers", 9),
        ("head_node_type", "heads"),
        (f"{GPU}/resources", None),
        ("docker/container_name", None),
        ("setup_commands", "pip install -r requirements.lock"),
    ],
)
def test_a_fault_that_ray_finds_is_still_found_by_ray(path, value):
    with pytest.raises(Exception, match=r".+"):
        ray_accepts(changed(path, value))


def test_node_types_in_the_yaml_are_what_the_job_reads():
    from jobs.cluster.capacity import NodeType
    from jobs.cluster.nodes import node_types

    config = prepare_config(copy.deepcopy(CONFIG))
    types, limit = node_types(config)
    assert limit == 8
    assert set(types) == {
        NodeType("head", 0, 0, 0),
        NodeType("gpu", 4, 1, 8),
        NodeType("gpu4", 48, 4, 2),
    }


def test_all_code_is_sent_with_a_submitted_job():
    """`.rayignore` names folders beside the code, not rooms that are called the same."""
    asked = ["git", "ls-files", "--ignored", "--cached", "--exclude-from", ".rayignore"]
    listed = subprocess.run(
        [*asked, "jobs", "masking", "vit"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""


def test_an_image_may_be_pinned_by_its_digest():
    config = copy.deepcopy(CONFIG)
    config["docker"]["head_image"] += f"@sha256:{'0a' * 32}"
    assert faults(config) == []
    config["docker"]["head_image"] += "b"
    assert any("not an image of the pinned Ray" in line for line in faults(config))
    ray_accepts(config)


@pytest.mark.parametrize("name", [*LOCKS, "requirements-dev.lock"])
def test_every_locked_package_has_its_version_and_hashes(name):
    entries = re.split(r"^(?=\w)", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    entry = r"[\w.-]+==[^\s;]+( ;[^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert [each for each in entries if not re.fullmatch(entry, each)] == []


def test_what_only_the_development_needs_is_not_installed_by_the_demo():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines):
        found = (re.match(r"[\w.-]+", line) for line in lines)
        return {re.sub(r"[_.]", "-", each[0]).lower() for each in found if each}

    needed = names(line for name in LOCKS for line in (ROOT / name).read_text().splitlines())
    dev = names((ROOT / "requirements-dev.lock").read_text().splitlines())
    assert names(project["dependencies"]) <= needed
    assert names(project["optional-dependencies"]["dev"]) <= dev
    assert needed & dev == set()
