"""Evaluating on the page: the figures are the service's, hard queries are marked, runs compare."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.browser import CLASSES, Visit
from tests.service.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page


def run(page: Page, ks: str = "1, 2, 4, 8") -> None:
    if not page.url.endswith("#/evaluate"):
        page.goto("/#/evaluate")
    page.locator("#ks").fill(ks)
    page.get_by_role("button", name="Evaluate").click()
    page.locator(".evaluate-progress", has_text="queries in").wait_for()


def per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"


@pytest.fixture
def answer(car_site: Server) -> dict[str, Any]:
    wanted = {"per_class": True, "hardest": 12, "confusion": 20}
    told: dict[str, Any] = car_site.client.post("/evaluate", json=wanted).json()
    return told


def test_figures_are_those_of_the_service(page: Page, answer: dict[str, Any]) -> None:
    run(page)
    rows = page.locator(".figures tbody tr")
    shown = {
        row.locator("th").inner_text(): row.locator("td").first.inner_text() for row in rows.all()
    }
    for k, share in answer["recall"].items():
        assert shown[f"recall@{k}"] == per_cent(share)
    assert shown["MAP@R"] == per_cent(answer["map_at_r"])
    assert shown["R-precision"] == per_cent(answer["r_precision"])
    assert shown["Queries"] == str(answer["queries"])
    title = page.locator("svg.chart title").text_content()
    assert title is not None
    assert all(f"{per_cent(share)} at {k}" in title for k, share in answer["recall"].items())


def test_progress_is_shown_and_the_run_can_be_stopped(visit: Visit, car_site: Server) -> None:
    """A job made up, for a small gallery's would be done before anybody could stop it."""
    page = visit(car_site, "/#/evaluate")
    job = {"id": "j", "kind": "evaluate", "state": "running", "created": "2026-01-01T00:00:00Z"}
    half = {"progress": {"done": 3, "total": 6, "stage": "ranking"}}
    cancelled: list[str] = []
    page.route("**/evaluate", lambda route: route.fulfill(status=202, json=job | half))
    page.route(
        "**/jobs/j/events", lambda route: route.fulfill(body="", content_type="text/event-stream")
    )

    def told(route: Any) -> None:
        if route.request.method == "DELETE":
            cancelled.append("j")
        state = {"state": "cancelled"} if cancelled else {}
        route.fulfill(json=job | half | state)

    page.route("**/jobs/j", told)
    page.get_by_role("button", name="Evaluate").click()
    page.locator(".evaluate-progress", has_text="3 of 6").wait_for()
    assert page.locator(".evaluate-progress progress").get_attribute("value") == "0.5"
    page.get_by_role("button", name="Stop").click()
    page.locator(".notice", has_text="stopped").wait_for()
    assert cancelled == ["j"]
    assert page.get_by_role("button", name="Evaluate").is_enabled()


def test_classes_come_lowest_first_with_their_recall(page: Page, answer: dict[str, Any]) -> None:
    run(page)
    bars = page.locator(".bar-row")
    assert bars.count() == CLASSES
    shares = {each["label"]: each["recall"]["1"] for each in answer["per_class"]}
    labels = [bar.locator(".bar-label").inner_text() for bar in bars.all()]
    assert [shares[label] for label in labels] == sorted(shares.values())
    for bar, label in zip(bars.all(), labels, strict=True):
        assert bar.locator(".bar-value").inner_text() == f"{100 * shares[label]:.0f} %"
        track, filled = (
            bar.locator(selector).evaluate("e => e.getBoundingClientRect().width")
            for selector in (".bar-track", ".bar-filled")
        )
        assert filled / track == pytest.approx(shares[label], abs=0.02)


def test_hardest_queries_have_their_neighbours_marked(page: Page, answer: dict[str, Any]) -> None:
    run(page)
    rows = page.locator(".hard")
    assert rows.count() == len(answer["hardest"]) > 0
    for row, query in zip(rows.all(), answer["hardest"], strict=True):
        assert query["label"] in row.locator("figcaption").inner_text()
        marks = ["right" in str(near.get_attribute("class")) for near in row.locator(".near").all()]
        assert marks == [near["right"] for near in query["neighbours"]]
        told = row.locator(".near .out-of-sight").all_inner_texts()
        assert told == ["Right: " if mark else "Wrong: " for mark in marks] or told == [
            "Right:" if mark else "Wrong:" for mark in marks
        ]


def test_confused_classes_are_shown_by_their_photos(page: Page, answer: dict[str, Any]) -> None:
    run(page)
    pairs = page.locator(".pair")
    assert pairs.count() == len(answer["confusion"]) > 0
    for shown, pair in zip(pairs.all(), answer["confusion"], strict=True):
        assert (
            shown.locator(".pair-words").inner_text()
            == f"{pair['label']} taken for {pair['found']}"
        )
        links = [link.get_attribute("href") for link in shown.locator("a").all()]
        assert links == [f"#/search?item={pair['query']}", f"#/search?item={pair['nearest']['id']}"]


def test_two_runs_are_compared(page: Page) -> None:
    run(page)
    page.locator(".filters summary").click()
    page.locator(".filter", has_text="dealer").locator(".filter-value", has_text="north").click()
    run(page, "1, 2, 4")
    page.locator("#compare-with").select_option("0")
    page.locator(".figures thead th", has_text="Change").wait_for()
    row = page.locator(".figures tbody tr", has_text="recall@1").first
    now, before, change = (cell.inner_text() for cell in row.locator("td").all())
    points = float(now.split()[0]) - float(before.split()[0])
    assert float(change.replace("−", "-")) == pytest.approx(points, abs=0.11)
    assert page.locator("svg .chart-line").count() == 2
    assert "north" in page.locator(".chart-legend-now").inner_text()


def test_the_last_run_is_there_when_the_view_is_shown_again(page: Page) -> None:
    run(page)
    shown = page.locator(".figures").inner_text()
    page.goto("/#/search")
    page.locator("#photo-input").wait_for(state="attached")
    page.goto("/#/evaluate")
    page.locator(".figures").wait_for()
    assert page.locator(".figures").inner_text() == shown


def test_figures_can_be_taken_along(page: Page, answer: dict[str, Any], tmp_path: Path) -> None:
    run(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download JSON").click()
    saved.value.save_as(tmp_path / "evaluation.json")
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert {key: told[key] for key in ("recall", "map_at_r", "protocol", "model")} == {
        key: answer[key] for key in ("recall", "map_at_r", "protocol", "model")
    }
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    saved.value.save_as(tmp_path / "evaluation.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "evaluation.csv").read_text())))
    assert rows[0]["label"] == "(all)"
    assert float(rows[0]["recall@1"]) == answer["recall"]["1"]
    assert [row["label"] for row in rows[1:]] == [each["label"] for each in answer["per_class"]]


@pytest.mark.parametrize("ks", ["", "one", "0", "1.5", "1, -2"])
def test_what_is_no_k_is_said_before_anything_is_sent(page: Page, ks: str) -> None:
    page.goto("/#/evaluate")
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.url) if r.method == "POST" else None)
    page.locator("#ks").fill(ks)
    page.get_by_role("button", name="Evaluate").click()
    page.locator(".notice", has_text="no values of K").wait_for()
    assert sent == []


def test_a_gallery_without_labels_says_so(empty_site: Server, visit: Visit) -> None:
    page = visit(empty_site, "/#/evaluate")
    page.get_by_role("button", name="Evaluate").click()
    page.locator(".notice").wait_for()
    page.get_by_role("link", name="Add labelled photos first.").wait_for()
