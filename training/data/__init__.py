"""Labelled photos: which files belong to which class, and which classes train.

Knows the layouts that people have (class folders, CSV, and published data sets as they unpack) and
turns each into the same ``Dataset``. Train and test never share a class: retrieval is judged on
classes that training has not seen. Each layout has a module of its own, found by
``training.data.layouts``.
"""

from training.data.dataset import Dataset, hold_out, load_dataset
from training.data.leaks import leaked_photos
from training.data.photos import (
    Photos,
    check_photos,
    check_trainable,
    read_photo,
    without_single,
)

__all__ = [
    "Dataset",
    "Photos",
    "check_photos",
    "check_trainable",
    "hold_out",
    "leaked_photos",
    "load_dataset",
    "read_photo",
    "without_single",
]
