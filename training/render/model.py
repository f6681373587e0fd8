"""What makes one drawn model of car differ from another: its parameters and how they are sampled.

Numbers and choices only. Surfaces are built from them in ``body``, ``ends``, ``flank`` and
``wheels``; nothing here knows about cameras, colours or pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

__all__ = ["BodyType", "CarModel"]


class BodyType(StrEnum):
    """Kinds of car; the values serve as the first part of class names."""

    SEDAN = "sedan"
    HATCH = "hatch"
    WAGON = "wagon"
    COUPE = "coupe"
    SUV = "suv"
    PICKUP = "pickup"
    VAN = "van"


@dataclass(frozen=True)
class CarModel:
    """The parameters of one model of car. Lengths are metres unless said otherwise.

    Photos of one model share all of this; paint, view and light belong to the photo.
    """

    body: BodyType

    wheelbase: float
    front_overhang: float
    rear_overhang: float
    width: float
    height: float
    #: Height of the sills above the ground.
    clearance: float

    #: Horizontal runs, as shares of the length: bonnet, windscreen, rear window, boot or bed.
    #: The roof is what they leave.
    bonnet: float
    screen: float
    backlight: float
    deck: float

    nose_height: float
    cowl_height: float
    #: How far the top of nose and tail lean back over the bumpers.
    nose_rake: float
    tail_rake: float
    #: Rise of the window line from windscreen to tail.
    belt_rise: float
    roof_drop: float
    #: Bow of the roof, as a share of its length.
    roof_arch: float
    #: Metres that a side window leans inwards for each metre of its height.
    tumblehome: float
    #: How far the corners of front and tail are swept back.
    nose_bow: float
    tail_bow: float
    #: Height of the crease along the side, as a share of the way from sill to window line.
    crease: float
    crease_rise: float

    rear_pillar: float
    #: Size of the corner that is cut from the rear end of the side windows.
    kink: float
    doors: int
    #: False for a delivery van: no side windows behind the front doors.
    glazed: bool

    wheel_radius: float
    #: Rim radius as a share of the wheel's.
    rim: float
    wheel_style: str
    spokes: int
    #: Spoke width as a share of what would close the wheel.
    spoke_width: float
    dark_rims: bool

    headlight: str
    headlight_width: float
    headlight_height: float
    grille: str
    #: Width as a share of the car's, height as a share of the front's.
    grille_width: float
    grille_height: float
    intake: float
    taillight: str
    taillight_size: float
    badge: bool

    cladding: bool
    roof_rails: bool
    spoiler: bool
    sunroof: bool
    chrome: bool

    @property
    def length(self) -> float:
        """Bumper to bumper."""
        return self.front_overhang + self.wheelbase + self.rear_overhang

    @classmethod
    def sample(cls, rng: np.random.Generator, *, body: BodyType | None = None) -> CarModel:
        """Draw a model.

        Args:
            rng: source of chance; the same state gives the same model.
            body: the kind of car, drawn as well if not given.
        """
        if body is None:
            body = list(BodyType)[int(rng.integers(len(BodyType)))]
        ranges = COMMON_RANGES | BODY_RANGES[body]
        drawn: dict[str, Any] = {
            name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()
        }
        chances = COMMON_CHANCES | BODY_CHANCES[body]
        drawn |= {name: bool(rng.random() < chance) for name, chance in chances.items()}
        drawn |= {
            name: options[int(rng.integers(len(options)))] for name, options in CHOICES.items()
        }
        doors = int(rng.choice(DOORS[body]))
        spokes = int(rng.integers(5, 11))
        return cls(body=body, doors=doors, spokes=spokes, **drawn)


CHOICES = {
    "wheel_style": ("spokes", "twin", "turbine", "disc"),
    "headlight": ("round", "slim", "block", "swept", "split"),
    "grille": ("bars", "mesh", "pair", "shield", "slot", "closed"),
    "taillight": ("upright", "wide", "bar", "round", "hook"),
}

DOORS = {
    BodyType.SEDAN: (4,),
    BodyType.HATCH: (2, 4),
    BodyType.WAGON: (4,),
    BodyType.COUPE: (2,),
    BodyType.SUV: (2, 4, 4),
    BodyType.PICKUP: (2, 4),
    BodyType.VAN: (4,),
}

COMMON_CHANCES = {
    "glazed": 1.0,
    "dark_rims": 0.35,
    "badge": 0.7,
    "cladding": 0.0,
    "roof_rails": 0.0,
    "spoiler": 0.3,
    "sunroof": 0.3,
    "chrome": 0.4,
}

BODY_CHANCES: dict[BodyType, dict[str, float]] = {
    BodyType.SEDAN: {"spoiler": 0.25},
    BodyType.HATCH: {"cladding": 0.2, "spoiler": 0.5},
    BodyType.WAGON: {"cladding": 0.25, "roof_rails": 0.7, "spoiler": 0.4},
    BodyType.COUPE: {"spoiler": 0.45, "sunroof": 0.15},
    BodyType.SUV: {"cladding": 0.6, "roof_rails": 0.6},
    BodyType.PICKUP: {"cladding": 0.5, "sunroof": 0.0, "spoiler": 0.0},
    BodyType.VAN: {"glazed": 0.55, "cladding": 0.25, "sunroof": 0.0, "spoiler": 0.0},
}

COMMON_RANGES = {
    "nose_rake": (0.03, 0.2),
    "tail_rake": (0.02, 0.12),
    "belt_rise": (0.0, 0.12),
    "roof_arch": (0.005, 0.05),
    "tumblehome": (0.22, 0.42),
    "nose_bow": (0.12, 0.34),
    "tail_bow": (0.08, 0.2),
    "crease": (0.5, 0.85),
    "crease_rise": (-0.02, 0.12),
    "rear_pillar": (0.12, 0.32),
    "kink": (0.0, 0.22),
    "rim": (0.6, 0.8),
    "spoke_width": (0.28, 0.6),
    "headlight_width": (0.3, 0.46),
    "headlight_height": (0.1, 0.2),
    "grille_width": (0.34, 0.6),
    "grille_height": (0.2, 0.42),
    "intake": (0.45, 0.85),
    "taillight_size": (0.75, 1.25),
}

BODY_RANGES: dict[BodyType, dict[str, tuple[float, float]]] = {
    BodyType.SEDAN: {
        "wheelbase": (2.55, 2.98),
        "front_overhang": (0.78, 0.95),
        "rear_overhang": (0.9, 1.15),
        "width": (1.7, 1.88),
        "height": (1.38, 1.5),
        "clearance": (0.16, 0.2),
        "bonnet": (0.25, 0.31),
        "screen": (0.14, 0.17),
        "backlight": (0.1, 0.17),
        "deck": (0.08, 0.14),
        "nose_height": (0.64, 0.78),
        "cowl_height": (0.9, 1.0),
        "roof_drop": (0.03, 0.1),
        "wheel_radius": (0.3, 0.35),
    },
    BodyType.HATCH: {
        "wheelbase": (2.35, 2.65),
        "front_overhang": (0.68, 0.84),
        "rear_overhang": (0.55, 0.75),
        "width": (1.62, 1.8),
        "height": (1.42, 1.58),
        "clearance": (0.16, 0.2),
        "bonnet": (0.21, 0.27),
        "screen": (0.15, 0.21),
        "backlight": (0.06, 0.14),
        "deck": (0.015, 0.03),
        "nose_height": (0.66, 0.8),
        "cowl_height": (0.92, 1.02),
        "roof_drop": (0.04, 0.12),
        "wheel_radius": (0.29, 0.34),
    },
    BodyType.WAGON: {
        "wheelbase": (2.6, 2.95),
        "front_overhang": (0.78, 0.95),
        "rear_overhang": (0.95, 1.18),
        "width": (1.7, 1.88),
        "height": (1.42, 1.54),
        "clearance": (0.16, 0.21),
        "bonnet": (0.24, 0.3),
        "screen": (0.14, 0.18),
        "backlight": (0.05, 0.12),
        "deck": (0.015, 0.03),
        "nose_height": (0.64, 0.78),
        "cowl_height": (0.9, 0.99),
        "belt_rise": (0.0, 0.08),
        "roof_drop": (0.03, 0.1),
        "rear_pillar": (0.1, 0.24),
        "wheel_radius": (0.3, 0.35),
    },
    BodyType.COUPE: {
        "wheelbase": (2.42, 2.75),
        "front_overhang": (0.78, 0.95),
        "rear_overhang": (0.72, 0.95),
        "width": (1.74, 1.92),
        "height": (1.2, 1.34),
        "clearance": (0.13, 0.17),
        "bonnet": (0.28, 0.37),
        "screen": (0.15, 0.18),
        "backlight": (0.19, 0.28),
        "deck": (0.04, 0.1),
        "nose_height": (0.56, 0.7),
        "cowl_height": (0.82, 0.9),
        "belt_rise": (0.0, 0.08),
        "roof_drop": (0.03, 0.08),
        "rear_pillar": (0.12, 0.28),
        "wheel_radius": (0.31, 0.35),
    },
    BodyType.SUV: {
        "wheelbase": (2.5, 2.95),
        "front_overhang": (0.78, 0.92),
        "rear_overhang": (0.72, 0.98),
        "width": (1.76, 1.98),
        "height": (1.62, 1.86),
        "clearance": (0.22, 0.3),
        "bonnet": (0.23, 0.28),
        "screen": (0.1, 0.17),
        "backlight": (0.03, 0.1),
        "deck": (0.014, 0.025),
        "nose_height": (0.86, 1.03),
        "cowl_height": (1.06, 1.2),
        "nose_rake": (0.03, 0.12),
        "roof_drop": (0.02, 0.09),
        "wheel_radius": (0.36, 0.42),
    },
    BodyType.PICKUP: {
        "wheelbase": (3.0, 3.45),
        "front_overhang": (0.82, 0.95),
        "rear_overhang": (1.0, 1.2),
        "width": (1.8, 2.0),
        "height": (1.66, 1.86),
        "clearance": (0.26, 0.34),
        "bonnet": (0.22, 0.26),
        "screen": (0.09, 0.14),
        "backlight": (0.015, 0.04),
        "deck": (0.28, 0.38),
        "nose_height": (0.9, 1.06),
        "cowl_height": (1.08, 1.18),
        "nose_rake": (0.03, 0.1),
        "tail_rake": (0.02, 0.05),
        "belt_rise": (0.0, 0.04),
        "roof_drop": (0.02, 0.05),
        "rear_pillar": (0.12, 0.2),
        "kink": (0.0, 0.1),
        "tail_bow": (0.04, 0.08),
        "wheel_radius": (0.37, 0.43),
    },
    BodyType.VAN: {
        "wheelbase": (2.7, 3.2),
        "front_overhang": (0.78, 0.95),
        "rear_overhang": (0.8, 1.1),
        "width": (1.76, 1.98),
        "height": (1.82, 2.15),
        "clearance": (0.18, 0.24),
        "bonnet": (0.12, 0.2),
        "screen": (0.13, 0.2),
        "backlight": (0.015, 0.045),
        "deck": (0.014, 0.02),
        "nose_height": (0.82, 0.96),
        "cowl_height": (1.05, 1.22),
        "belt_rise": (0.0, 0.06),
        "roof_drop": (0.01, 0.06),
        "tumblehome": (0.12, 0.24),
        "rear_pillar": (0.12, 0.24),
        "kink": (0.0, 0.1),
        "tail_bow": (0.05, 0.1),
        "wheel_radius": (0.31, 0.36),
    },
}
