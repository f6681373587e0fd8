"""The gallery of the service's tests, which is also what is deployed here."""

from __future__ import annotations

from tests.service.conftest import gallery_folder, items, model_folder, photos

__all__ = ["gallery_folder", "items", "model_folder", "photos"]
