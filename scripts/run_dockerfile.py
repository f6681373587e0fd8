"""Executes a Dockerfile's lines without a Docker engine, in a folder that stands for the container.

    python scripts/run_dockerfile.py --target serve --root /var/tmp/dscl-serve

Every COPY, RUN, HEALTHCHECK and CMD that leads to the target is carried out as written, stage by
stage, but for two things: the paths below /app, /data, /opt, /root and /tmp lie in the folder, and
the base image is this Python. Afterwards the target

- starts: ``train`` prints its help; ``serve`` refuses without access keys, then serves a gallery
  made here until its HEALTHCHECK passes, in a network namespace of its own;
- has changed nothing outside /data and /tmp, as under a read-only root file system;
- ``serve`` has no torch.

What cannot be seen so: the base image itself, and the user's rights.

It installs from the package index that pip is set up with, which takes minutes. Exits with 1 and
one line for what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]

#: Absolute paths of the container that lie in the folder; all others are this machine's.
CONTAINER_PATH = re.compile(r"(?<![\w./\0-])/(?=(?:app|data|opt|root|tmp)\b)")

#: What stands for the base image's own Python.
BASE_BIN = "usr/local/bin"

#: Folders that may be written to while the container runs.
WRITABLE = ("data", "tmp")

#: Of this process's environment: how pip finds packages.
PASSED_ON = re.compile(r"PIP_|SSL_CERT|REQUESTS_CA|https?_proxy$|no_proxy$", re.IGNORECASE)

#: Longest that the container takes to be healthy, or to print its help.
START_S = 180


class DeployError(Exception):
    """The Dockerfile does not do what it says."""


@dataclass
class Stage:
    """One FROM and what came after it."""

    name: str
    instructions: list[tuple[str, str]]  #: name in capitals, value
    parent: str  #: a stage or an image
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dockerfile", type=Path, default=REPOSITORY / "Dockerfile")
    parser.add_argument("--target", default="serve", help="a stage that is started: serve or train")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--root", type=Path, help="new or empty; default: made and removed")
    arguments = parser.parse_args()
    build_args = dict(pair.split("=", 1) for pair in arguments.build_arg)
    with tempfile.TemporaryDirectory() as folder:
        root = (arguments.root or Path(folder) / "root").absolute()
        try:
            built = Build(arguments.dockerfile, root, build_args)
            stage = built.build(arguments.target)
            built.start(stage)
        except DeployError as error:
            raise SystemExit(f"Error: {error}") from None
        finally:
            shutil.rmtree(root.with_name(f"{root.name}.stages"), ignore_errors=True)


def stages(dockerfile: Path) -> dict[str, Stage]:
    """The stages by name, in their order.

    Raises:
        DeployError: an instruction before the first FROM.
    """
    with dockerfile.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    found: dict[str, Stage] = {}
    for line in structure:
        name, value = line["instruction"].upper(), line["value"]
        if name == "COMMENT":
            continue
        if name == "FROM":
            parent, *named = re.split(r"\s+as\s+", value, flags=re.IGNORECASE)
            stage = Stage(named[0] if named else str(len(found)), [], parent)
            found[stage.name] = stage
        elif not found:
            raise DeployError(f"{dockerfile}: {name} before the first FROM.")
        else:
            next(reversed(found.values())).instructions.append((name, value))
    return found


class Build:
    """A folder in which one stage after the other is carried out, always at the same place.

    Paths get into what pip installs, so a stage that is finished is put aside (by hard links) and
    what a later one takes from it is brought back to where it was.
    """

    def __init__(self, dockerfile: Path, root: Path, build_args: Mapping[str, str]) -> None:
        """Prepare to build; ``root`` must be absent or empty."""
        if root.exists() and any(root.iterdir()):
            raise DeployError(f"{root} is not empty: take a new folder.")
        self.dockerfile = dockerfile
        self.root = root
        self.build_args = build_args
        self.stages = stages(dockerfile)
        self.aside = root.with_name(f"{root.name}.stages")
        self._done: set[str] = set()

    def build(self, target: str) -> Stage:
        """Carry out ``target`` and all that it takes something from; its files lie in ``root``."""
        if target not in self.stages:
            raise DeployError(
                f"{self.dockerfile} has no stage {target!r}, only {', '.join(self.stages)}."
            )
        stage = self.stages[target]
        for name in self._needs(stage):
            if name not in self._done:
                self.build(name)
        tell(f"stage {target}")
        self._begin(stage)
        for name, value in stage.instructions:
            self._carry_out(stage, name, value)
        stage.arguments.clear()  # a container does not have them
        self._done.add(target)
        link_tree(self.root, self.aside / target)
        return stage

    def start(self, stage: Stage) -> None:
        """Start the container that ``stage`` makes, and judge it."""
        if stage.user in ("root", "0", "0:0"):
            raise DeployError(f"stage {stage.name} runs as root: name a USER.")
        if not stage.command:
            raise DeployError(f"stage {stage.name} has no CMD.")
        before = listing(self.root)
        if stage.health:
            self._start_service(stage)
        else:
            done = self._run(stage, [*stage.entrypoint, *stage.command], capture=True)
            if done.returncode:
                raise DeployError(f"stage {stage.name}: CMD failed: {done.stdout[-2000:]}")
        if changed := before ^ listing(self.root):
            path = min(changed)[0]
            raise DeployError(f"stage {stage.name} writes to /{path}, outside /data and /tmp.")
        size = sum(size for _, size, _ in before)
        print(f"{stage.name}: works; /opt/dscl holds {size / 1e6:,.0f} MB in {len(before):,} files")

    def _start_service(self, stage: Stage) -> None:
        if list(self.root.glob("opt/dscl/lib/python*/site-packages/torch")):
            raise DeployError(f"stage {stage.name} has torch installed.")
        make_gallery(self.root / "data")
        command = [self._here(part) for part in (*stage.entrypoint, *stage.command)]
        # Nothing but the namespace's own loopback, so 0.0.0.0 and the port are nobody's.
        alone = ["unshare", "--map-root-user", "--net", "sh", "-c"]
        loopback = "ip link set lo up || exit 4\n"
        refused = self._run(stage, [*alone, loopback + shlex.join(command)], capture=True)
        if refused.returncode == 0 or "dscl keys new" not in refused.stdout:
            raise DeployError(
                f"stage {stage.name}: without access keys it should refuse to serve and say how to "
                f"make some, but: {refused.stdout[-2000:]}"
            )
        health = shlex.join(self._here(part) for part in stage.health)
        script = (
            f"{loopback}{shlex.join(command)} & service=$!\n"
            f"until {health} 2>/dev/null; do kill -0 $service || exit 3; sleep 0.5; done\n"
            "kill $service; wait $service; status=$?\n"
            # 143: it has ended by SIGTERM, once all was closed
            "[ $status -eq 0 ] || [ $status -eq 143 ]"
        )
        served = self._run(stage, [*alone, script], capture=True, extra={"DSCL_INSECURE": "1"})
        if served.returncode:
            raise DeployError(
                f"stage {stage.name}: CMD did not get healthy and stop on SIGTERM (status "
                f"{served.returncode}): {served.stdout[-2000:]}"
            )

    # One instruction

    def _needs(self, stage: Stage) -> list[str]:
        copied = [
            found[1]
            for name, value in stage.instructions
            if name == "COPY" and (found := re.search(r"--from=(\S+)", value))
        ]
        return [name for name in (stage.parent, *copied) if name in self.stages]

    def _begin(self, stage: Stage) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if stage.parent in self._done:
            parent = self.stages[stage.parent]
            link_tree(self.aside / parent.name, self.root)
            stage.environment, stage.user = dict(parent.environment), parent.user
            stage.workdir, stage.entrypoint = parent.workdir, parent.entrypoint
            return
        binaries = self.root / BASE_BIN
        binaries.mkdir(parents=True)
        (self.root / "tmp").mkdir()
        # Not that of a virtual environment: a base image has none.
        python = getattr(sys, "_base_executable", sys.executable)
        for name in ("python", "python3"):
            (binaries / name).symlink_to(python)
        stage.environment = {"PATH": f"{binaries}:/usr/sbin:/usr/bin:/sbin:/bin"}

    def _carry_out(self, stage: Stage, name: str, value: str) -> None:
        if name == "WORKDIR":
            stage.workdir = value
            self._path(value).mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            for pair in shlex.split(value):
                key, _, content = pair.partition("=")
                # Docker fills in variables of its own, such as $PATH.
                filled = re.sub(r"\$(\w+)", lambda m: stage.environment.get(m[1], ""), content)
                stage.environment[key] = self._here(filled)
        elif name == "ARG":
            key, _, default = value.partition("=")
            stage.arguments[key] = self.build_args.get(key, "".join(shlex.split(default)))
        elif name == "COPY":
            self._copy(stage, value)
        elif name == "RUN":
            line = re.sub(r"^(--\S+\s+)+", "", value)
            tell(f"RUN {line}")
            if self._run(stage, ["sh", "-c", self._here(line)]).returncode:
                raise DeployError(f"stage {stage.name}: RUN {line} failed.")
        elif name == "USER":
            stage.user = value
        elif name == "ENTRYPOINT":
            stage.entrypoint = json.loads(value)
        elif name == "CMD":
            stage.command = json.loads(value)
        elif name == "HEALTHCHECK":
            stage.health = json.loads(value.partition("CMD")[2])
        elif name != "EXPOSE":
            raise DeployError(f"stage {stage.name}: {name} is nothing that this script knows.")

    def _copy(self, stage: Stage, value: str) -> None:
        parts = shlex.split(value)
        options = [part for part in parts if part.startswith("--")]
        *sources, target = [part for part in parts if not part.startswith("--")]
        origin = next((each[7:] for each in options if each.startswith("--from=")), None)
        goal = self._path(target, stage.workdir)
        for source in sources:
            if origin is None:
                if not in_context(source, self.dockerfile.with_name(".dockerignore")):
                    raise DeployError(f"COPY {source}: .dockerignore leaves it out.")
                path = self.dockerfile.parent / source
            else:
                path = self.aside / origin / source.lstrip("/")
            if not path.exists():
                raise DeployError(f"stage {stage.name}: COPY {source}: there is no such file.")
            if path.is_dir() and origin is None:
                # Not linked: what is built in there must not change the repository.
                shutil.copytree(path, goal, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_dir():
                link_tree(path, goal)
            else:
                into = goal / path.name if target.endswith("/") or len(sources) > 1 else goal
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into)

    def _run(
        self,
        stage: Stage,
        command: Sequence[str],
        *,
        capture: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        passed = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
        process = subprocess.Popen(
            [self._here(part) for part in command],
            cwd=self._path(stage.workdir),
            env={**passed, **stage.environment, **stage.arguments, **(extra or {})},
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=START_S if capture else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise DeployError(
                f"stage {stage.name}: not done after {START_S} s: {output[-2000:]}"
            ) from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, process.returncode, output)

    def _here(self, text: str) -> str:
        """``text`` with the container's paths led into the folder, unless they are already."""
        marked = text.replace(str(self.root), "\0")
        return CONTAINER_PATH.sub(f"{self.root}/", marked).replace("\0", str(self.root))

    def _path(self, path: str, workdir: str = "/") -> Path:
        return self.root / (Path(workdir) / path).relative_to("/")


def in_context(source: str, dockerignore: Path) -> bool:
    """Whether a file reaches the builder, where all that has no ``!`` line is left out."""
    lines = dockerignore.read_text(encoding="utf-8").split()
    return "*" not in lines or f"!{Path(source).parts[0]}" in lines


def link_tree(source: Path, target: Path) -> None:
    """A copy of a folder; on one disk it takes no room."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:  # another disk
            shutil.copy2(one, other, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)


def listing(root: Path) -> set[tuple[str, int, int]]:
    """Path, size and time stamp of each file that a running container must leave alone."""
    found = set()
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if relative.parts[0] not in WRITABLE and not path.is_dir():
            status = path.lstat()
            found.add((str(relative), status.st_size, status.st_mtime_ns))
    return found


def make_gallery(data: Path) -> None:
    """A small gallery at ``data``/gallery, of photos and a model made here."""
    sys.path.insert(0, str(REPOSITORY))
    from index import Gallery, build, list_photos
    from tests.photos import write_class_folders
    from tests.tiny_model import make_model_folder

    write_class_folders(data / "photos")
    with Gallery.create(data / "gallery", make_model_folder(data / "model")) as gallery:
        build(gallery, list_photos(data / "photos"))


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
