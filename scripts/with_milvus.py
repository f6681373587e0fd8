"""Runs a command beside a real Milvus server, and leaves nothing of the server behind.

    python scripts/with_milvus.py python -m pytest -m milvus_server

The server (``pip install milvus``, 80 MB, once, into .venv-milvus) and the command run in a network
namespace of their own, as the server listens on every interface; its data is in a temporary folder.
The command finds the server by DSCL_TEST_MILVUS=127.0.0.1:19530, and may kill and start it
(``scripts.milvus_server``). The exit status is the command's; 77 if the server cannot be had here,
with the reason on stderr; 1 if it did not start.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from milvus_server import ADDRESS, HOME_VARIABLE, MilvusServer, MilvusServerError

REPOSITORY = Path(__file__).parents[1]
CONSTRAINTS = REPOSITORY / "deploy" / "milvus-server-constraints.txt"

#: As Automake's tests say "not run".
NOT_RUN = 77

#: A network without others, and process ids that all end with the first of them.
ALONE = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

#: linux/sockios.h, linux/if.h
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1

UNPACK = "import sys, milvus; milvus._initialize_data_files(sys.argv[1])"


class NotHereError(Exception):
    """What this machine lacks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=REPOSITORY / ".venv-milvus",
                        help="where the server is installed")  # fmt: skip
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--alive", type=int, metavar="PIPE", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("which command is to be run beside the server?")
    environment = arguments.environment.absolute()
    if arguments.inside is not None:
        threading.Thread(target=end_with, args=[arguments.alive], daemon=True).start()
        sys.exit(inside(arguments.inside, environment, arguments.command))
    try:
        unshare = expect_machine()
        install(environment)
    except NotHereError as error:
        print(f"with_milvus: not run: {error}", file=sys.stderr)
        sys.exit(NOT_RUN)
    with tempfile.TemporaryDirectory(prefix="dscl-milvus-", ignore_cleanup_errors=True) as folder:
        me = [sys.executable, __file__, "--environment", str(environment), "--inside", folder]
        sys.exit(run([*unshare, *me], *arguments.command))


def expect_machine() -> list[str]:
    """The command that runs another where the server is alone.

    Raises:
        NotHereError: the server does not run here, or not alone.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise NotHereError(f"the Milvus server is made for Linux on x86_64; this is {system} on "
                           f"{machine}.")  # fmt: skip
    try:
        import pymilvus  # noqa: F401
    except ImportError:
        raise NotHereError("pymilvus is not installed: pip install -e '.[milvus]'.") from None
    if shutil.which("unshare") is None:
        raise NotHereError("there is no `unshare` (util-linux).")
    # Without --user first: in a user namespace of one user nginx cannot give up its rights.
    for how in (ALONE, ["--user", "--map-root-user", *ALONE]):
        tried = subprocess.run(["unshare", *how, "true"], capture_output=True, text=True)
        if tried.returncode == 0:
            return ["unshare", *how]
    raise NotHereError(f"no network namespace can be made: {tried.stderr.strip()}")


def install(environment: Path) -> None:
    """Install and unpack the server, unless it is there as the constraints want it.

    Raises:
        NotHereError: it cannot be had.
    """
    stamp = environment / ".installed"
    wanted = CONSTRAINTS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    python = environment / "bin" / "python"
    print(f"Installing the Milvus server into {environment} …", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", environment],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--constraint", CONSTRAINTS, "milvus"],
        [python, "-c", UNPACK, environment / "milvus"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it did not say why"]
            raise NotHereError(f"the Milvus server cannot be installed: {said[-1]}")
    stamp.write_text(wanted, encoding="utf-8")


def run(command: Sequence[str], *options: str) -> int:
    """Run ``command --alive PIPE options``, which ends when this process does; its exit status."""
    theirs, mine = os.pipe()
    process = subprocess.Popen([*command, "--alive", str(theirs), *options], pass_fds=[theirs])
    os.close(theirs)
    asked_to_end = 0

    def end(number: int, frame: object) -> None:
        nonlocal asked_to_end
        if not asked_to_end:
            asked_to_end = number
            os.close(mine)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's, too: let it end
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    status = process.wait()
    return 128 + asked_to_end if asked_to_end else shown(status)


def shown(status: int) -> int:
    """A process's exit status, as a shell shows it."""
    return status if status >= 0 else 128 - status


# In the namespace


def inside(folder: Path, environment: Path, command: Sequence[str]) -> int:
    """Start the server, run the command, stop the server; the command's exit status."""
    # Ctrl-C is for the command, too: it ends, and then this does. (An ignored signal would stay
    # ignored in the command; a handler does not.)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    loopback_up()
    server = MilvusServer(folder, environment / "milvus" / "bin")
    try:
        server.configure(environment / "bin" / "python")
        server.start()
        process = subprocess.Popen(
            command,
            env={**os.environ, "DSCL_TEST_MILVUS": ADDRESS, HOME_VARIABLE: server.home},
        )
        status = process.wait()
    except FileNotFoundError as error:
        print(f"with_milvus: {error.filename} is not there.", file=sys.stderr)
        return 127
    except MilvusServerError as error:
        print(f"with_milvus: {error}", file=sys.stderr)
        return 1
    finally:
        server.kill()
    return shown(status)


def end_with(pipe: int) -> None:
    """End this process, and with it all of its namespace, when nobody holds the pipe open."""
    os.read(pipe, 1)
    os._exit(1)


def loopback_up() -> None:
    """Switch the namespace's loopback on, as ``ip link set lo up`` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    main()
