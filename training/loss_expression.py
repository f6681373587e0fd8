"""What ``--loss`` may say: one loss by name, or a weighted sum of several.

    dscl        proxy-anchor(margin=0.2,alpha=16)        dscl+0.2*multi-similarity

Names and hyper-parameters live here, apart from what the losses compute (``training.criteria``):
settings and presets are checked before torch is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from index.errors import InvalidArgumentError

__all__ = ["LOSSES", "Parameter", "Term", "check_batch", "format_loss", "parse_loss"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A hyper-parameter of a loss: its default and its range."""

    default: float
    least: float | None = None  #: None: any number above 0
    most: float = math.inf
    whole: bool = False

    def accepts(self, value: float) -> bool:
        """Whether ``value`` is in range."""
        low = value > 0 if self.least is None else value >= self.least
        whole = not self.whole or float(value).is_integer()
        return low and value <= self.most and math.isfinite(value) and whole

    @property
    def expected(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.whole else "a number"
        low = "above 0" if self.least is None else f"from {_number(self.least)}"
        return f"{kind} {low}" + ("" if math.isinf(self.most) else f" to {_number(self.most)}")


#: Hyper-parameters by loss, with the defaults of the paper that each loss is from.
LOSSES: Mapping[str, Mapping[str, Parameter]] = {
    # Law, Urtasun and Zemel, "Deep Spectral Clustering Learning" (ICML 2017).
    "dscl": {},
    # Kim, Kim, Cho and Kwak, "Proxy Anchor Loss for Deep Metric Learning" (CVPR 2020).
    "proxy-anchor": {
        "margin": Parameter(default=0.1, least=0, most=1),
        "alpha": Parameter(default=32),
    },
    # Movshovitz-Attias et al., "No Fuss Distance Metric Learning Using Proxies" (ICCV 2017), in the
    # form and with the scale (temperature 1/9) of Teh, DeVries and Taylor, "ProxyNCA++" (ECCV
    # 2020): without a scale, distances on the unit sphere are too small for the softmax.
    "proxy-nca": {"scale": Parameter(default=9)},
    # Wang, Han, Huang, Dong and Scott, "Multi-Similarity Loss with General Pair Weighting for Deep
    # Metric Learning" (CVPR 2019); base as in the authors' code.
    "multi-similarity": {
        "alpha": Parameter(default=2),
        "beta": Parameter(default=50),
        "base": Parameter(default=0.5, least=-1, most=1),
        "epsilon": Parameter(default=0.1, least=0),
    },
    # Schroff, Kalenichenko and Philbin, "FaceNet" (CVPR 2015): squared distances, at most 4.
    "triplet": {"margin": Parameter(default=0.2, most=4)},
    # Deng, Guo, Xue and Zafeiriou, "ArcFace" (CVPR 2019): 0.5 rad, given in degrees.
    "arcface": {
        "margin": Parameter(default=28.6, least=0, most=90),
        "scale": Parameter(default=64),
    },
    # Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning" (BMVC 2019).
    "normalized-softmax": {"temperature": Parameter(default=0.05)},
    # Qian et al., "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling" (ICCV 2019).
    "soft-triple": {
        "centers": Parameter(default=10, least=2, whole=True),
        "scale": Parameter(default=20),
        "gamma": Parameter(default=0.1),
        "margin": Parameter(default=0.01, least=0, most=1),
        "tau": Parameter(default=0.2, least=0),
    },
    # Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping" (CVPR
    # 2006), not squared. The paper sets no margin for unit vectors, whose distances are at most 2.
    "contrastive": {
        "pos_margin": Parameter(default=0, least=0, most=2),
        "neg_margin": Parameter(default=1, most=2),
    },
    # Sun et al., "Circle Loss" (CVPR 2020), as for fine-grained retrieval.
    "circle": {
        "margin": Parameter(default=0.4, least=0, most=1),
        "gamma": Parameter(default=80),
    },
    # Khosla et al., "Supervised Contrastive Learning" (NeurIPS 2020).
    "supcon": {"temperature": Parameter(default=0.1)},
}


@dataclass(frozen=True)
class Term:
    """One loss of a sum."""

    weight: float  #: above 0
    name: str  #: a key of ``LOSSES``
    parameters: Mapping[str, float]  #: all of the loss's, defaults included

    def __str__(self) -> str:
        """The shortest way to write it: no weight of 1, no parameter at its default."""
        defaults = LOSSES[self.name]
        given = ",".join(
            f"{key}={_number(value)}"
            for key, value in self.parameters.items()
            if value != defaults[key].default
        )
        weight = "" if self.weight == 1 else f"{_number(self.weight)}*"
        return f"{weight}{self.name}" + (f"({given})" if given else "")


def parse_loss(text: str) -> tuple[Term, ...]:
    """Read an expression: ``[weight*]name[(parameter=number,…)]``, several joined by ``+``.

    Raises:
        InvalidArgumentError: a mistake in the grammar; a loss or parameter that does not exist (the
            nearest are named), is out of range, or is there twice.
    """
    return _Reader(text).expression()


def format_loss(terms: tuple[Term, ...]) -> str:
    """The canonical expression: the same for all ways to write the same sum in the same order."""
    return "+".join(map(str, terms))


def check_batch(expression: str, batch_size: int, dim: int) -> None:
    """Refuse a batch that the loss cannot learn from.

    Here rather than in the loss alone: an hour may lie between the two.

    Raises:
        InvalidArgumentError: DSCL is part of the loss, and ``batch_size`` is not above ``dim`` + 1;
            or ``expression`` is none.
    """
    if batch_size <= dim + 1 and any(term.name == "dscl" for term in parse_loss(expression)):
        raise InvalidArgumentError(
            f"a batch of {batch_size} images cannot train a {dim}-dimensional DSCL embedding: the "
            f"loss is flat when n <= d. Raise --batch-size above {dim + 1} ({8 * dim} is a good "
            "start) or lower --dim."
        )


_TOKEN = re.compile(
    r"(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z][\w-]*)|(?P<mark>[+*(),=])",
    re.ASCII,
)


class _Reader:
    """Reads an expression token by token, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            match = _TOKEN.match(text, position)
            if match is None:
                self.fail(f"{text[position]!r} has no meaning here")
            self.tokens.append((str(match.lastgroup), match.group()))
            position = match.end()

    def expression(self) -> tuple[Term, ...]:
        terms = [self.term()]
        while self.tokens:
            self.take("mark", "+", "'+' and another loss, or the end")
            terms.append(self.term())
            if terms[-1].name in [term.name for term in terms[:-1]]:
                self.fail(f"{terms[-1].name} is there twice")
        return tuple(terms)

    def term(self) -> Term:
        weight = 1.0
        if self.next_is("number"):
            weight = float(self.take("number"))
            self.take("mark", "*", "'*' and a loss after its weight")
        if not (math.isfinite(weight) and weight > 0):
            self.fail(f"weight {_number(weight)} is out of range, expected a number above 0")
        name = self.take("name", expected="the name of a loss")
        if name not in LOSSES:
            self.fail(f"there is no loss {name!r}{_nearest(name, LOSSES)}")
        parameters = {key: parameter.default for key, parameter in LOSSES[name].items()}
        if self.next_is("mark", "("):
            parameters |= self.arguments(name)
        return Term(weight, name, parameters)

    def arguments(self, name: str) -> dict[str, float]:
        known = LOSSES[name]
        values: dict[str, float] = {}
        self.take("mark", "(")
        while True:
            key = self.take("name", expected=f"a parameter of {name}")
            if not known:
                self.fail(f"{name} takes no parameters here; --ridge sets its ridge")
            if key not in known:
                self.fail(f"{name} has no parameter {key!r}{_nearest(key, known)}")
            if key in values:
                self.fail(f"{key} of {name} is there twice")
            self.take("mark", "=", f"'=' and a number after {key}")
            value = float(self.take("number", expected=f"a number for {key}"))
            if not known[key].accepts(value):
                self.fail(f"{key} of {name} is {_number(value)}, expected {known[key].expected}")
            values[key] = value
            if self.next_is("mark", ")"):
                self.take("mark", ")")
                return values
            self.take("mark", ",", "',' or ')'")

    def next_is(self, kind: str, token: str | None = None) -> bool:
        return (
            bool(self.tokens) and self.tokens[0][0] == kind and token in (None, self.tokens[0][1])
        )

    def take(self, kind: str, token: str | None = None, expected: str = "") -> str:
        if not self.next_is(kind, token):
            found = f"found {self.tokens[0][1]!r}" if self.tokens else "it ends"
            self.fail(f"{found} where there should be {expected}")
        return self.tokens.pop(0)[1]

    def fail(self, problem: str) -> NoReturn:
        raise InvalidArgumentError(
            f"--loss {self.text!r}: {problem}. Write a loss such as dscl, a loss with parameters "
            "such as proxy-anchor(margin=0.2), or a sum such as dscl+0.2*multi-similarity."
        )


def _nearest(name: str, known: Mapping[str, object] | Mapping[str, Parameter]) -> str:
    """The names most like ``name``, then all names, with the defaults of parameters."""
    close = get_close_matches(name.lower().replace("_", "-"), known, n=2) or get_close_matches(
        name.lower(), known, n=2
    )
    shown = ", ".join(
        f"{key}={_number(value.default)}" if isinstance(value, Parameter) else key
        for key, value in known.items()
    )
    return (f"; did you mean {' or '.join(close)}?" if close else ";") + f" It can be: {shown}"


def _number(value: float) -> str:
    """The shortest text that reads as ``value``: 16, 0.1, 1e-05."""
    whole = float(value).is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else repr(float(value))
