"""Parametric cars drawn by our own code, for demonstrations and tests: nobody's licence applies.

A class is a model of car, that is its geometry; paint, view, light, surroundings, occlusion and
noise change from photo to photo. NumPy and Pillow only, no torch.
"""

from training.render.dataset import render_dataset
from training.render.model import BodyType, CarModel
from training.render.photo import render_car

__all__ = ["BodyType", "CarModel", "render_car", "render_dataset"]
