"""Backbones: classification networks without their classifiers, their preprocessing and weights.

``Backbone`` is the one class that the rest of training sees. Where networks come from is a module
each (``torchvision_networks``, ``timm_networks``; the protocol is in ``source``); reading files of
weights is in ``weights``. The head is no concern of this package.
"""

from training.backbones.backbone import Backbone, default_size
from training.backbones.weights import WeightsError

__all__ = ["Backbone", "WeightsError", "default_size"]
