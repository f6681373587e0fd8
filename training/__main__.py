"""``python -m training``, the same as ``dscl train``: ``torchrun … -m training`` runs it."""

from __future__ import annotations

import sys

from index.errors import DsclError
from training.commands import train
from training.launch import report_mistake

__all__ = ["main"]


def main() -> None:
    """Entry point: a mistake in the input prints one line and exits with status 1."""
    try:
        train.main(prog_name="dscl train", standalone_mode=True)
    except DsclError as error:
        report_mistake(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
