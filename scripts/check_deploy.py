"""Checks what the service is deployed with, by the programs that will read it.

    python scripts/check_deploy.py              what the tools installed here can check
    python scripts/check_deploy.py --all        a missing tool is a failure, too

- Dockerfile: hadolint
- docker-compose.yml, each profile: docker-compose
- deploy/kubernetes: the schemas of Kubernetes, strictly
- deploy/nginx, with each file of backends: nginx
- deploy/prometheus, its rules and their tests, and each query of deploy/grafana: promtool

All but nginx and promtool come with the extra `deploy`; these two with `apt-get install nginx
prometheus`. No Docker engine and no cluster is needed. Exits with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).parents[1]

#: Compose profiles that are started together.
PROFILES = ((), ("scale",), ("observe",), ("scale", "observe"))

#: What Grafana fills in before it asks Prometheus.
GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}

TOOL_S = 120


class MissingToolError(Exception):
    """A program that checks something is not installed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="fail where a tool is missing")
    arguments = parser.parse_args()
    failed = False
    for name, check in CHECKS.items():
        try:
            problems = list(check(REPOSITORY))
        except MissingToolError as error:
            print(f"{name}: not checked, {error}")
            failed |= arguments.all
            continue
        print(f"{name}: {'wrong' if problems else 'right'}")
        for problem in problems:
            print(f"  {problem}")
        failed |= bool(problems)
    sys.exit(failed)


def check_dockerfile(repository: Path) -> Iterator[str]:
    """What hadolint has to say."""
    yield from complaints("hadolint", "--no-color", repository / "Dockerfile")


def check_compose(repository: Path) -> Iterator[str]:
    """Whether each profile can be read, pins its images and publishes ports on loopback alone."""
    problems = chain.from_iterable(_compose_problems(repository, each) for each in PROFILES)
    yield from dict.fromkeys(problems)  # once, however many profiles have it


def _compose_problems(repository: Path, profiles: tuple[str, ...]) -> Iterator[str]:
    done = run(
        "docker-compose",
        *("--file", repository / "docker-compose.yml"),
        *(f"--profile={profile}" for profile in profiles),
        *("config", "--format", "json"),
    )
    if done.returncode:
        yield done.stderr.strip()
        return
    for name, service in json.loads(done.stdout)["services"].items():
        image = service.get("image", "")
        if not re.search(r":[\w.-]*\d[\w.-]*$", image):
            yield f"service {name}: image {image!r} names no version."
        for port in service.get("ports", ()):
            if port.get("host_ip") != "127.0.0.1":
                yield f"service {name}: port {port['published']} is open to other machines."


def check_kubernetes(repository: Path) -> Iterator[str]:
    """Whether each manifest follows its schema, and kustomize is told of each."""
    folder = repository / "deploy" / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    present = {path.name for path in folder.glob("*.yaml")}
    present -= {"kustomization.yaml", "prometheus-adapter-values.yaml"}
    for name in sorted(present ^ set(kustomization["resources"])):
        yield f"{name}: {'not ' if name in present else ''}in kustomization.yaml, " + (
            "but here." if name in present else "but not here."
        )
    for name in sorted(present):
        for manifest in yaml.safe_load_all((folder / name).read_text(encoding="utf-8")):
            yield from (f"{name}: {problem}" for problem in schema_problems(manifest))


def schema_problems(manifest: dict[str, Any]) -> Iterator[str]:
    """What Kubernetes would refuse, unknown fields included."""
    version = kubernetes_validate.latest_version()
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield str(error)


def check_nginx(repository: Path) -> Iterator[str]:
    """Whether nginx loads its configuration, with each kind of backends, and with limits."""
    limits = (repository / "deploy" / "nginx" / "limits.conf").read_text(encoding="utf-8")
    for backends in sorted((repository / "deploy" / "nginx" / "backends").glob("*.conf")):
        with tempfile.TemporaryDirectory() as folder:
            text = backends.read_text(encoding="utf-8")
            config = nginx_folder(repository, Path(folder), text, port=8080, limits=limits)
            lines = complaints("nginx", "-t", "-q", "-p", folder, "-c", config)
            yield from (f"backends/{backends.name}: {line}" for line in lines)


def nginx_folder(
    repository: Path, folder: Path, backends: str, *, port: int, limits: str = ""
) -> Path:
    """deploy/nginx in a folder of its own, to be run on loopback without any rights.

    Args:
        repository: where deploy/ is.
        folder: gets the configuration, and what nginx would write below /tmp.
        backends: the text of conf.d/backends.conf.
        port: to listen on.
        limits: the text of conf.d/limits.conf, if there is to be one.

    Returns:
        The configuration, for ``nginx -p FOLDER -c CONFIGURATION``.
    """
    text = (repository / "deploy" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080;", f"listen 127.0.0.1:{port};")
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "backends.conf").write_text(backends, encoding="utf-8")
    if limits:
        (folder / "conf.d" / "limits.conf").write_text(limits, encoding="utf-8")
    config = folder / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    return config


def check_prometheus(repository: Path) -> Iterator[str]:
    """Whether Prometheus loads its configuration and the alerts' tests pass."""
    folder = repository / "deploy" / "prometheus"
    yield from complaints("promtool", "check", "config", folder / "prometheus.yml")
    yield from complaints("promtool", "test", "rules", folder / "rules_test.yml")


def check_dashboards(repository: Path) -> Iterator[str]:
    """Whether each query of the dashboards is one."""
    for dashboard in sorted((repository / "deploy" / "grafana" / "dashboards").glob("*.json")):
        rules = [
            {"record": f"query_{number}", "expr": query}
            for number, query in enumerate(dashboard_queries(dashboard))
        ]
        groups = {"groups": [{"name": dashboard.name, "rules": rules}]}
        with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
            yaml.safe_dump(groups, file)
            file.flush()
            lines = complaints("promtool", "check", "rules", file.name)
            yield from (f"{dashboard.name}: {line}" for line in lines)


def dashboard_queries(dashboard: Path) -> Iterator[str]:
    """The PromQL of all panels, Grafana's own variables filled in."""
    for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            query: str = target["expr"]
            for variable, value in GRAFANA_VARIABLES.items():
                query = query.replace(variable, value)
            yield query


def complaints(*command: str | Path) -> list[str]:
    """What a program prints if it fails, line by line."""
    done = run(*command)
    if done.returncode == 0:
        return []
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines or [f"{command[0]} failed with status {done.returncode}."]


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program at its end.

    Raises:
        MissingToolError: it is neither beside this Python nor on the PATH.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(program, path=beside) or shutil.which(program)
    # Debian's nginx is not on everybody's PATH.
    found = found or shutil.which(program, path="/usr/sbin")
    if found is None:
        raise MissingToolError(f"{program} is not installed.")
    return subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, timeout=TOOL_S, check=False
    )


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "Dockerfile": check_dockerfile,
    "Compose": check_compose,
    "Kubernetes": check_kubernetes,
    "nginx": check_nginx,
    "Prometheus": check_prometheus,
    "Grafana": check_dashboards,
}


if __name__ == "__main__":
    main()
