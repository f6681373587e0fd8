from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from tests.service.running import serving

MOST_KEPT = 100_000_000


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_huge_photos_leave_no_memory_behind(gallery_folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (7000, 7000)).save(buffer, "PNG", compress_level=1)
    huge = buffer.getvalue()

    with serving(gallery_folder, tmp_path) as server:

        def send(_: int) -> int:
            return server.client.post("/search", files={"file": huge}).status_code

        before = resident(server.process.pid)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(send, range(6))) == [200] * 6
        assert resident(server.process.pid) < before + MOST_KEPT
