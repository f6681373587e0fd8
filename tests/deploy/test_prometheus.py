"""Prometheus as it is deployed, reading a real service."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx
import yaml

from index import Item
from tests.deploy.programs import REPOSITORY, free_port, program
from tests.service.running import DEADLINE_S, eventually, serving


def test_prometheus_reads_the_service_and_has_the_alerts(
    gallery_folder: Path, items: list[Item], tmp_path: Path
) -> None:
    prometheus = program("prometheus")
    deployed = REPOSITORY / "deploy" / "prometheus"
    config = yaml.safe_load((deployed / "prometheus.yml").read_text(encoding="utf-8"))
    rules = (deployed / "rules.yml").read_text(encoding="utf-8")
    (tmp_path / "rules.yml").write_text(rules, encoding="utf-8")
    with serving(gallery_folder, tmp_path) as server:
        # Names are Docker's to resolve.
        [job] = [job for job in config["scrape_configs"] if job["job_name"] == "dscl"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{server.client.base_url.port}"]}]
        config["scrape_configs"] = [job]
        config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s"}
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        port = free_port()
        log = tmp_path / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    prometheus,
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

        def asked(path: str, **parameters: str) -> list[dict[str, Any]] | None:
            assert process.poll() is None, log.read_text()
            try:
                answer = httpx.get(
                    f"http://127.0.0.1:{port}/api/v1/{path}",
                    params=parameters,
                    timeout=DEADLINE_S,
                    trust_env=False,
                )
            except httpx.ConnectError:
                return None
            # 503 while it starts
            data = answer.json()["data"] if answer.status_code == 200 else {}
            return data.get("result") or data.get("groups") or None

        try:
            [found] = eventually(lambda: asked("query", query="dscl_gallery_items"))
            assert found["value"][1] == str(len(items))
            [group] = eventually(lambda: asked("rules"))
            assert {"DsclReplicaDown", "DsclErrors"} < {rule["name"] for rule in group["rules"]}
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
