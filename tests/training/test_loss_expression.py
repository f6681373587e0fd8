"""The grammar of ``--loss``: what is read, how it is written back, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import InvalidArgumentError
from training.loss_expression import LOSSES, Term, check_batch, format_loss, parse_loss


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("dscl", "dscl"),
        (" 1.0 * dscl ", "dscl"),
        ("dscl+0.2*multi-similarity", "dscl+0.2*multi-similarity"),
        ("dscl + .2 * multi-similarity", "dscl+0.2*multi-similarity"),
        ("proxy-anchor(margin=0.1,alpha=32.0)", "proxy-anchor"),
        ("proxy-anchor(alpha=16, margin=2e-1)", "proxy-anchor(margin=0.2,alpha=16)"),
        ("1e+1*triplet+1e-5*dscl", "10*triplet+1e-05*dscl"),
        ("soft-triple(centers=2,tau=0)", "soft-triple(centers=2,tau=0)"),
    ],
)
def test_an_expression_is_written_back_in_its_shortest_form(text: str, canonical: str) -> None:
    assert format_loss(parse_loss(text)) == canonical


def test_parameters_left_out_have_their_defaults() -> None:
    assert parse_loss("3*proxy-anchor(alpha=16)") == (
        Term(3, "proxy-anchor", {"margin": 0.1, "alpha": 16}),
    )
    assert parse_loss("dscl") == (Term(1, "dscl", {}),)


@st.composite
def sums(draw: st.DrawFn) -> tuple[Term, ...]:
    """Any sum there can be."""
    names = draw(st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, unique=True))
    positive = st.floats(1e-300, 1e300)
    terms = []
    for name in names:
        parameters = {}
        for key, parameter in LOSSES[name].items():
            if parameter.whole:
                value = st.integers(2, 10**18).map(float)
            else:
                least = 1e-300 if parameter.least is None else parameter.least
                value = st.floats(least, min(parameter.most, 1e300))
            parameters[key] = draw(st.just(parameter.default) | value)
        terms.append(Term(draw(st.just(1.0) | positive), name, parameters))
    return tuple(terms)


@given(sums())
@settings(max_examples=50, deadline=None)
def test_what_is_written_reads_as_the_same_sum(terms: tuple[Term, ...]) -> None:
    assert parse_loss(format_loss(terms)) == terms


@given(sums(), st.lists(st.sampled_from(["", " ", "  "]), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_spaces_between_tokens_do_not_matter(terms: tuple[Term, ...], spaces: list[str]) -> None:
    text = format_loss(terms)
    for mark, space in zip("*(,=", spaces, strict=True):
        text = text.replace(mark, space + mark + space)
    assert parse_loss(f" {text} ") == terms


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it ends where there should be the name of a loss"),
        ("dscl+", "it ends where there should be the name of a loss"),
        ("+dscl", r"found '\+' where there should be the name of a loss"),
        ("dscl triplet", r"found 'triplet' where there should be '\+' and another loss"),
        ("0.2 multi-similarity", r"found 'multi-similarity' where there should be '\*' and a loss"),
        ("0.2", r"it ends where there should be '\*'"),
        ("0*dscl", "weight 0 is out of range, expected a number above 0"),
        ("-1*dscl", "weight -1 is out of range"),
        ("1e999*dscl", "weight inf is out of range"),
        ("dscl;triplet", "';' has no meaning here"),
        ("dscl+dscl", "dscl is there twice"),
        ("proxy-ancor", "no loss 'proxy-ancor'; did you mean proxy-anchor"),
        ("Multi_Similarity", "no loss 'Multi_Similarity'; did you mean multi-similarity"),
        ("DSCL", r"no loss 'DSCL'; did you mean dscl\?"),
        ("xyzzy", "no loss 'xyzzy'; It can be: dscl, proxy-anchor, .*supcon"),
        ("dscl(ridge=0.1)", "dscl takes no parameters here; --ridge sets its ridge"),
        ("triplet()", r"found '\)' where there should be a parameter of triplet"),
        ("triplet(margin)", r"found '\)' where there should be '=' and a number after margin"),
        ("triplet(margin=)", r"found '\)' where there should be a number for margin"),
        ("triplet(margin=0.1", r"it ends where there should be ',' or '\)'"),
        ("triplet(margin=0.1,)", r"found '\)' where there should be a parameter of triplet"),
        ("triplet(margin=0.1,margin=0.2)", "margin of triplet is there twice"),
        ("triplet(marjin=0.1)", r"no parameter 'marjin'; did you mean margin\?.*: margin=0.2"),
        ("soft-triple(k=3)", "It can be: centers=10, scale=20, gamma=0.1, margin=0.01, tau=0.2"),
        ("triplet(margin=0)", "margin of triplet is 0, expected a number above 0 to 4"),
        ("triplet(margin=nan)", "found 'nan' where there should be a number for margin"),
        ("proxy-anchor(margin=-0.1)", "margin of proxy-anchor is -0.1, expected .* from 0 to 1"),
        ("proxy-anchor(alpha=1e999)", "alpha of proxy-anchor is inf, expected a number above 0"),
        ("soft-triple(centers=2.5)", "centers of soft-triple is 2.5, expected a whole number"),
        ("soft-triple(centers=1)", "centers of soft-triple is 1, expected .* from 2"),
    ],
)
def test_mistakes_are_named_with_the_way_out(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as raised:
        parse_loss(text)
    assert str(raised.value).startswith(f"--loss {text!r}: ")


def test_every_default_is_in_range() -> None:
    parameters = [parameter for known in LOSSES.values() for parameter in known.values()]
    assert len(parameters) > 10
    assert all(parameter.accepts(parameter.default) for parameter in parameters)


@pytest.mark.parametrize("expression", ["dscl", "triplet+0.1*dscl"])
def test_a_batch_too_small_for_dscl_is_refused(expression: str) -> None:
    message = r"batch of 129 images cannot train a 128-d.*flat.* above 129 \(1024 is.*lower --dim"
    with pytest.raises(InvalidArgumentError, match=message):
        check_batch(expression, 129, 128)
    check_batch(expression, 130, 128)


def test_peers_take_a_batch_of_any_size() -> None:
    check_batch("triplet+0.1*proxy-anchor", 8, 128)


def test_expressions_are_read_without_torch() -> None:
    code = "import sys, training.loss_expression; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
