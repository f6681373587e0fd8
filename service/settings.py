"""How the service is run: every knob, its default and its environment variable.

Values come from the command line first, then from ``DSCL_…`` environment variables. The rest of
the service takes this object or plain values from it, and reads no environment.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.gallery import MAX_K

__all__ = ["Settings"]


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """Settings of one service process. ``DSCL_GALLERY``, ``DSCL_PORT``, … set the same."""

    model_config = SettingsConfigDict(env_prefix="DSCL_", frozen=True)

    gallery: Path = Field(description="The gallery folder to serve.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes any free one.")
    insecure: bool = Field(
        default=False, description="Listen on other than loopback addresses without access keys."
    )
    workers: int = Field(
        default_factory=available_cores, ge=1, description="Threads that decode, embed and search."
    )
    queue_limit: int = Field(
        default=64, ge=0, description="Requests that may wait for a thread; more are refused."
    )
    max_upload_bytes: int = Field(
        default=20_000_000, ge=1, description="Largest request body, in bytes."
    )
    max_results: int = Field(default=1000, ge=1, le=MAX_K, description="Largest k of a search.")
    access_log: bool = Field(default=False, description="Log every request.")

    @model_validator(mode="after")
    def _refuse_open_network(self) -> Self:
        if not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and the service asks nobody "
                "for a key: everyone there could see the gallery. Listen on 127.0.0.1, or pass "
                "--insecure (DSCL_INSECURE=1) if you trust that network."
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
