"""``MilvusServer``: a real Milvus standalone server, without containers, that tests may kill.

It listens on every interface, on ports of its own choice: run it where there is nothing but a
loopback, as ``scripts/with_milvus.py`` does, and never else.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ADDRESS", "HOME_VARIABLE", "ROOT_TOKEN", "MilvusServer", "MilvusServerError"]

PORT = 19530
HEALTH_PORT = 9091
ADDRESS = f"127.0.0.1:{PORT}"

#: Names the server's folder to the tests, which may then kill and start it.
HOME_VARIABLE = "DSCL_TEST_MILVUS_HOME"

#: Longest that a start takes. After a kill the server waits for the leases of its former self.
START_S = 240

#: What the package's own Python makes: its configuration, for ports and folders.
CONFIGURE = f"""
import sys
from milvus import MilvusServerConfig
MilvusServerConfig(data_dir=sys.argv[1], proxy_port={PORT}).resolve()
"""


#: How often the server tells its parts the time, in ms. A read that is to see a change waits for
#: the next time: of the hundreds in the tests each would take a fifth of a second.
OWN_TICK, TICK = "timeTickInterval: 200", "timeTickInterval: 10"

AUTHORIZATION = "authorizationEnabled: "

#: Who Milvus lets in from the beginning.
ROOT_TOKEN = "root:Milvus"


class MilvusServerError(Exception):
    """The server did not start, or ended by itself."""


@dataclass(frozen=True)
class MilvusServer:
    """A server with its data, logs and process id in a folder, whoever started it."""

    folder: Path
    programs: Path  #: the folder with the program ``milvus`` and its libraries

    @classmethod
    def of_environment(cls) -> MilvusServer | None:
        """The server that this process was started with by ``with_milvus.py``, if it was."""
        home = os.environ.get(HOME_VARIABLE)
        if not home:
            return None
        folder, programs = map(Path, home.split(os.pathsep))
        return cls(folder, programs)

    @property
    def home(self) -> str:
        """What ``of_environment`` reads."""
        return os.pathsep.join([str(self.folder), str(self.programs)])

    def configure(self, python: Path) -> None:
        """Write the configuration, once, by the Python that has the package ``milvus``."""
        subprocess.run([python, "-c", CONFIGURE, self.folder], check=True)
        self._replace_setting(OWN_TICK, TICK)

    def require_password(self, required: bool) -> None:
        """From its next start, let the server answer those alone who give a name and password."""
        now, then = (f"{AUTHORIZATION}{str(each).lower()}" for each in (not required, required))
        self._replace_setting(now, then)

    def start(self, *, token: str = "") -> None:
        """Start the server, on the data it had, and return when it answers.

        Args:
            token: ``name:password``, where it asks for that.

        Raises:
            MilvusServerError: it ended, or does not answer in time; with the end of its log.
        """
        with (self.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [self.programs / "milvus", "run", "standalone"],
                cwd=self.folder,  # it looks for configs/ there
                env={
                    **os.environ,
                    "DEPLOY_MODE": "STANDALONE",
                    "LD_LIBRARY_PATH": str(self.programs),
                    "METRICS_PORT": str(HEALTH_PORT),
                    "MILVUS_RUN_DIR": str(self.folder / "run"),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for who runs it, who then stops it
            )
        self._pid_file.write_text(str(process.pid), encoding="utf-8")
        end = time.monotonic() + START_S
        while not _answers(token):
            if process.poll() is not None:
                raise MilvusServerError(
                    f"the Milvus server ended with {process.returncode}:\n{self.log()}"
                )
            if time.monotonic() > end:
                raise MilvusServerError(
                    f"the Milvus server does not answer after {START_S} s:\n{self.log()}"
                )
            time.sleep(0.2)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server, by SIGKILL as a crash would, and return when it has ended."""
        try:
            pid = int(self._pid_file.read_text(encoding="utf-8"))
            process = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            signal.pidfd_send_signal(process, number)
            select.select([process], [], [])  # readable when it has ended, whose child it ever is
        finally:
            os.close(process)
        self._pid_file.unlink()

    def log(self) -> str:
        """The end of what the server has said."""
        lines = (self.folder / "output.txt").read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def _replace_setting(self, before: str, after: str) -> None:
        file = self.folder / "configs" / "milvus.yaml"
        text = file.read_text(encoding="utf-8")
        if before not in text:
            raise MilvusServerError(f"{file} does not say {before!r}: this is another release.")
        file.write_text(text.replace(before, after), encoding="utf-8")

    @property
    def _pid_file(self) -> Path:
        return self.folder / "milvus.pid"


def _answers(token: str) -> bool:
    """Whether the server says that all its parts are well, and answers a call."""
    from pymilvus import MilvusClient, MilvusException

    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{HEALTH_PORT}/healthz", timeout=5
        ) as response:
            if b"OK" not in response.read():
                return False
        client = MilvusClient(f"http://{ADDRESS}", token=token, timeout=5)
    except (OSError, MilvusException):
        return False
    try:
        client.list_collections(timeout=5)
    except MilvusException:
        return False
    finally:
        client.close()
    return True
