from __future__ import annotations

import pytest

pytest_plugins = ["tests.service.browser"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=200,
        metavar="N",
        help="How many times test_crash.py kills a gallery's writer.  [default: 200]",
    )
