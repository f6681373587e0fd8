"""How the service is run: every knob, its default and its environment variable.

Values come from the command line first, then from ``DSCL_…`` environment variables. The rest of
the service takes this object or plain values from it, and reads no environment.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.address import GalleryAddress, parse_address
from index.gallery import MAX_K
from index.images import MAX_PIXELS
from index.runtimes import Runtime

__all__ = ["Role", "Settings", "is_loopback"]

#: What a process does: everything; or, of several, searching, or changing the gallery.
Role = Literal["whole", "search", "writer"]


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def threads_of_each(settings: dict[str, Any]) -> int:
    """As many threads in all worker processes together as there are cores."""
    workers: int = settings.get("workers", 1)  # absent if it was refused
    return max(1, available_cores() // workers)


class Settings(BaseSettings):
    """Settings of one service process. ``DSCL_GALLERY``, ``DSCL_PORT``, … set the same."""

    model_config = SettingsConfigDict(env_prefix="DSCL_", frozen=True)

    gallery: Annotated[GalleryAddress, BeforeValidator(parse_address), PlainSerializer(str)] = (
        Field(description="The gallery to serve: its folder, or milvus://HOST:PORT/NAME.")
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes any free one.")
    insecure: bool = Field(
        default=False, description="Listen on other than loopback addresses without access keys."
    )
    keys: SecretStr | None = Field(
        default=None, description="Access keys: lines `name scope sha256`, split by `;`."
    )
    keys_file: Path | None = Field(
        default=None, description="A file of access keys, read again when it changes."
    )
    cors_origins: list[str] = Field(
        default=[], description="Origins whose pages may call the service, as a JSON list."
    )
    rate_limit: int = Field(
        default=0, ge=0, description="Requests a minute for each key or address; 0 sets no limit."
    )
    workers: int = Field(
        default=1, ge=1, description="Processes that search; more than 1 add one that writes."
    )
    threads: int = Field(
        default_factory=threads_of_each,
        ge=1,
        description="Threads of each process that decode, embed and search.",
    )
    queue_limit: int = Field(
        default=64, ge=0, description="Requests that may wait for a thread; more are refused."
    )
    runtime: Runtime = Field(default="auto", description="What computes embeddings.")
    read_only: bool = Field(default=False, description="Never change the gallery.")
    max_upload_bytes: int = Field(
        default=20_000_000, ge=1, description="Largest body of a request with one photo, in bytes."
    )
    max_bulk_bytes: int = Field(
        default=1_000_000_000, ge=1, description="Largest zip of photos, in bytes."
    )
    max_json_bytes: int = Field(default=1_000_000, ge=1, description="Largest JSON body, in bytes.")
    max_files: int = Field(default=16, ge=1, description="Photos in one batch search.")
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, le=MAX_PIXELS, description="Pixels of the largest photo."
    )
    max_results: int = Field(default=1000, ge=1, le=MAX_K, description="Largest k of a search.")
    request_timeout_s: float = Field(
        default=30, gt=0, description="Seconds that a request may take, its upload not counted."
    )
    header_timeout_s: float = Field(
        default=10, gt=0, description="Seconds in which the headers of a request must arrive."
    )
    body_timeout_s: float = Field(
        default=30, gt=0, description="Seconds in which its body must arrive."
    )
    url_search: bool = Field(
        default=False, description="Let clients name a public address of a photo to search by."
    )
    url_timeout_s: float = Field(
        default=10, gt=0, description="Seconds that fetching such a photo may take."
    )
    url_max_bytes: int = Field(
        default=20_000_000, ge=1, description="Largest photo that is fetched, in bytes."
    )
    access_log: bool = Field(default=False, description="Log every request.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="The log's lines: text, or JSON objects."
    )
    trace: bool = Field(default=False, description="Send OpenTelemetry spans (extra `otel`).")

    # Set by the supervisor, never by users
    role: Role = Field(default="whole", repr=False)
    state_folder: Path | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _refuse_open_network(self) -> Self:
        if not self.insecure and not is_loopback(self.host) and not self.has_keys:
            raise ValueError(
                f"host {self.host} can be reached from other machines, and the service asks nobody "
                "for a key: everyone there could see and change the gallery. Make keys with `dscl "
                "keys new` and name their file with --keys-file (DSCL_KEYS_FILE), listen on "
                "127.0.0.1, or pass --insecure (DSCL_INSECURE=1) if you trust that network."
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether clients need an access key."""
        return self.keys is not None or self.keys_file is not None

    @property
    def writes(self) -> bool:
        """Whether this process changes the gallery when asked to."""
        return not self.read_only and self.role != "search"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
