"""Containers, Compose and Kubernetes: right by the programs that read them, and by each other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from index.address import MilvusAddress, parse_address
from index.milvus_gallery import CACHE_VARIABLE
from scripts.check_deploy import CHECKS, MissingToolError, dashboard_queries, run
from scripts.run_dockerfile import stages
from service.app import create_app
from service.metrics import GalleryFacts, exposition
from service.settings import Settings
from tests.deploy.programs import REPOSITORY

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
MIB = 2**20


def problems(check: str, repository: Path) -> list[str]:
    try:
        return list(CHECKS[check](repository))
    except MissingToolError as error:
        pytest.skip(str(error))


def manifest(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((KUBERNETES / name).read_text(encoding="utf-8"))
    return value


def composed(*profiles: str) -> dict[str, Any]:
    """The services that Compose would start."""
    options = [f"--profile={profile}" for profile in profiles]
    file = f"--file={REPOSITORY / 'docker-compose.yml'}"
    done = run("docker-compose", file, *options, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_deployed_is_right_by_the_program_that_reads_it(check: str) -> None:
    assert problems(check, REPOSITORY) == []


@pytest.mark.parametrize(
    ("check", "file", "old", "new", "said"),
    [
        ("Dockerfile", "Dockerfile", "WORKDIR /app", "WORKDIR app", "DL3000"),
        ("Dockerfile", "Dockerfile", "python:3.11-slim-bookworm", "python", "DL3006"),
        ("Compose", "docker-compose.yml", "networks: [front]", "network: [front]", "network"),
        ("Compose", "docker-compose.yml", "milvus:v2.5.12", "milvus:latest", "names no version"),
        ("Compose", "docker-compose.yml", "127.0.0.1:3000", "3000", "open to other machines"),
        ("Kubernetes", "deploy/kubernetes/deployment.yaml", "args:", "argz:", "argz"),
        ("Kubernetes", "deploy/kubernetes/autoscaler.yaml", "minReplicas: 2", "minReplicas: few",
         "spec.minReplicas"),
        ("Kubernetes", "deploy/kubernetes/kustomization.yaml", "  - ingress.yaml\n", "",
         "ingress.yaml: not in kustomization"),
        ("nginx", "deploy/nginx/nginx.conf", "proxy_buffering off", "proxy_buffer off",
         "proxy_buffer"),
        ("nginx", "deploy/nginx/backends/machines.conf", "default replicas", "replicas",
         "backends/machines.conf"),
        ("Prometheus", "deploy/prometheus/prometheus.yml", "scrape_configs", "scrapes", "scrapes"),
        ("Prometheus", "deploy/prometheus/rules.yml", "dscl_gallery_recall < 0.9",
         "dscl_gallery_recall < 0.8", "DsclRecallLow"),
        ("Grafana", "deploy/grafana/dashboards/dscl.json", "histogram_quantile(0.5,",
         "histogram_quantile(0.5", "dscl.json"),
    ],
)  # fmt: skip
def test_the_checks_see_a_mistake(
    tmp_path: Path, check: str, file: str, old: str, new: str, said: str
) -> None:
    for name in ("Dockerfile", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    path = tmp_path / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert said in "\n".join(problems(check, tmp_path))


# What is named in one place is there in the other


def deployed_settings() -> Iterator[str]:
    for path in (REPOSITORY / "docker-compose.yml", *KUBERNETES.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line.partition("# ")[0] for line in lines)
        yield from re.findall(r"\bDSCL_([A-Z_]+)\b", text)


def test_every_setting_that_is_deployed_is_one_of_the_services() -> None:
    named = {name.lower() for name in deployed_settings()}
    assert {"gallery", "keys_file", "insecure"} <= named
    # The other is not of the service alone: every command that opens a gallery goes by it.
    assert named <= {*Settings.model_fields, CACHE_VARIABLE.removeprefix("DSCL_").lower()}


def test_every_figure_that_is_asked_for_is_one_that_the_service_tells() -> None:
    told = exposition(GalleryFacts(items=1, recall=0.99, model_name="m", model_sha256="0"))
    names = {line.split()[2] for line in told.decode().splitlines() if line.startswith("# TYPE")}
    rules = yaml.safe_load((REPOSITORY / "deploy/prometheus/rules.yml").read_text("utf-8"))
    [metric] = manifest("autoscaler.yaml")["spec"]["metrics"]
    queries = [
        *dashboard_queries(REPOSITORY / "deploy/grafana/dashboards/dscl.json"),
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
        metric["pods"]["metric"]["name"],
    ]
    asked = {name for query in queries for name in re.findall(r"\bdscl_\w+", query)}
    assert len(asked) > 8
    series = names | {f"{name}{part}" for name in names for part in ("_bucket", "_sum", "_count")}
    assert asked <= series
    used = {name for name in names if any(series.startswith(name) for series in asked)}
    assert used == names, "the dashboard leaves figures out"


def test_the_proxy_has_the_limits_of_the_service() -> None:
    text = (REPOSITORY / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    sizes = {"m": MIB, "g": 2**30}
    found = {
        about: int(number) * sizes[unit]
        for number, unit, about in re.findall(r"client_max_body_size (\d+)([mg]);\s+# (.+)", text)
    }
    one, bulk = defaults["max_upload_bytes"], defaults["max_bulk_bytes"]
    expected = {
        "DSCL_MAX_UPLOAD_BYTES": one,
        "DSCL_MAX_BULK_BYTES": bulk,
        "DSCL_MAX_FILES × DSCL_MAX_UPLOAD_BYTES": defaults["max_files"] * one,
    }
    assert found.keys() == expected.keys()
    for about, size in expected.items():
        assert size <= found[about] <= 1.1 * size, about
    [timeout] = re.findall(r"^    proxy_read_timeout (\d+)s;", text, re.MULTILINE)
    assert int(timeout) > defaults["request_timeout_s"]


def test_services_of_ours_can_write_nowhere_but_to_volumes_and_have_no_rights() -> None:
    services = composed("scale")
    for name in ("dscl", "replica", "proxy"):
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "/tmp" in service["tmpfs"], name


def test_compose_alone_serves_a_folder_and_scale_serves_milvus_twice() -> None:
    assert set(composed()) == {"dscl"}
    services = composed("scale")
    assert services["replica"]["deploy"]["replicas"] == 2
    command = services["replica"]["command"]
    address = parse_address(command[command.index("--gallery") + 1])
    assert isinstance(address, MilvusAddress)
    assert (address.host, address.port) == ("milvus", 19530)
    # Where the replicas' photos go is a volume that they share.
    [photos] = [v for v in services["replica"]["volumes"] if v["target"] == address.store]
    assert photos["type"] == "volume"
    # Only the proxy can be reached, and Milvus only by those that are in its network.
    published = {name for name, service in services.items() if service.get("ports")}
    assert published == {"dscl", "proxy"}
    inside = {name for name, service in services.items() if "store" in service["networks"]}
    assert inside == {"replica", "milvus", "etcd", "object-store"}


def test_images_run_as_a_user_without_a_name_which_kubernetes_knows() -> None:
    found = stages(REPOSITORY / "Dockerfile")
    for name in ("serve", "train"):
        assert ("USER", "1000:1000") in found[name].instructions
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 1000
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_kubernetes_parts_mean_the_same_pods() -> None:
    deployment = manifest("deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service.yaml")["spec"]["selector"] == labels
    assert manifest("disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("network.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    target = manifest("autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "an apply would undo what the autoscaler did"


def test_probes_ask_what_the_service_answers(gallery_folder: Path) -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [port] = container["ports"]
    paths = create_app(Settings(gallery=gallery_folder)).openapi()["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] == port["name"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    # A process that Milvus has left alone is not to be restarted.
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    longest = Settings.model_fields["request_timeout_s"].default
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= longest + pause
