"""Errors that a user can act on.

Every error that is the user's to mend derives from ``DsclError`` and carries a stable ``code``.
The command line prints the message alone; the service turns the code into an HTTP status. A
message names the thing, its value, what was expected and the way out.
"""

from __future__ import annotations


class DsclError(Exception):
    """Base of all errors that name a mistake in the input and the way out of it."""

    code = "error"


class ImageError(DsclError):
    """An image that cannot be used; ``code`` says why (``image_empty``, ``image_truncated``, …)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelError(DsclError):
    """A model folder that is missing, incomplete, changed or of an unknown format."""

    code = "model_invalid"


class GalleryError(DsclError):
    """A gallery that cannot be opened or changed as asked."""

    code = "gallery_invalid"


class GalleryLockedError(GalleryError):
    """A gallery that another process changes."""

    code = "gallery_locked"


class GalleryUnavailableError(GalleryError):
    """A server that holds the gallery and does not answer now; it may later."""

    code = "gallery_unavailable"


class OutcomeUnknownError(GalleryError):
    """A change that a server has not answered, and may have made."""

    code = "outcome_unknown"


class ModelMismatchError(GalleryError):
    """A gallery met a model other than the one its vectors were made with."""

    code = "model_mismatch"


class BaseDamagedError(GalleryError):
    """An index file that is missing or not what was written; the catalog can replace it."""

    code = "index_damaged"


class StoreError(GalleryError):
    """A store of photos that denies access or does not answer."""

    code = "store_unreachable"


class ShardError(DsclError):
    """Shards that cannot be embedded, or a work folder that is not of this run."""

    code = "shards_invalid"


class ItemNotFoundError(DsclError):
    """An item id that is not in the gallery."""

    code = "item_not_found"


class InvalidArgumentError(DsclError, ValueError):
    """An argument outside its range."""

    code = "invalid_argument"


class AttributeTypeError(InvalidArgumentError):
    """An attribute's value of a type other than the one that the attribute has."""

    code = "attribute_type"


class DuplicateExternalIdError(InvalidArgumentError):
    """An external id that another item has."""

    code = "duplicate_external_id"


class FilterError(InvalidArgumentError):
    """A ``where`` that cannot be understood."""

    code = "filter_invalid"


class DataError(DsclError):
    """A data set or list of photos whose layout or content cannot be used."""

    code = "data_invalid"
