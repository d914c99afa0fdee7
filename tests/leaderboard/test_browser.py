"""The page in a browser, from the file system: what its script does, and that it asks for nothing and fails nowhere."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import synthetic

from harness.leaderboard.board import Board, boards
from harness.leaderboard.build import build, load
from harness.leaderboard.citations import bibtex, command, entries, used
from harness.leaderboard.columns import BY_KEY
from harness.leaderboard.conditions import conditions
from harness.leaderboard.ranks import rankings
from harness.leaderboard.statistics import paired_difference

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found: the leaderboard's page is not tested"
)
expect = playwright.expect

ROOT = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("HARNESS_AXE") or ROOT / "node_modules/axe-core/axe.min.js")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = int(
    os.environ.get("PATIENCE", 60_000)
)  # milliseconds: a busy machine draws slowly, a broken page never
ROWS = "#table .tabulator-row"


@dataclass
class Site:
    """A built page and the boards behind it."""

    page: Path
    boards: list[Board]

    def board(self, label: str) -> Board:
        return next(board for board in self.boards if board.label == label)

    def row(self, board: str, *axes: str):
        return next(row for row in self.board(board).rows if row.axes == axes)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """The published records and two made-up boards."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "leaderboard" / "records", folder / "records")
    synthetic.put(folder, synthetic.realistic("base", numbers=1))
    synthetic.put(folder, synthetic.realistic("base", numbers=2, scenario={"name": "digits"}))
    build(folder)
    return Site(folder / "index.html", boards(load(folder)))


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    """One page for all tests, as loading it is most of the work; its console and requests are looked at in the end."""
    said, asked = [], []
    with playwright.sync_playwright() as driver:
        # TMPDIR: the profile, which Chromium makes anew for each start.
        environment = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("profile"))}
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS), env=environment, timeout=PATIENCE
        )
        context = browser.new_context(offline=True, accept_downloads=True)
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        opened = context.new_page()
        opened.on(
            "console", lambda message: message.type in ("error", "warning") and said.append(message.text)
        )
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(site.page.as_uri())
        yield opened
        browser.close()
    assert said == []
    own = {site.page.as_uri(), site.page.with_name("hostile.html").as_uri()}
    assert {url.partition("#")[0] for url in asked if not url.startswith(("data:", "blob:"))} <= own


@pytest.fixture
def visit(page):
    """visit(permalink, width, scheme) -> the page as that link shows it."""
    count = 0

    def go(link: str = "", width: int = 1400, scheme: str = "light"):
        nonlocal count
        count += 1
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        ready(page)
        page.evaluate("localStorage.clear()")
        # Something new each time: an address that stays the same is no visit.
        page.evaluate(
            "link => { delete document.body.dataset.ready; location.hash = link; }",
            f"{link}&visit={id(go)}.{count}",
        )
        ready(page)
        return page

    return go


def ready(page):
    page.locator("body[data-ready]").wait_for()


def choose(page, name: str, value: str):
    page.locator(f"[data-filter={name}]").select_option(value)


def column(page, key: str):
    """The numbers of a column, in the table's order."""
    return page.locator(f"{ROWS} [tabulator-field={key}] b")


def head(page, title: str):
    return page.locator("#table button.head").filter(has_text=re.compile(f"^{re.escape(title)}"))


def written(value, key: str) -> str:
    return (value.text or BY_KEY[key].show(value.mean).replace("-", "−")) + value.signs


def in_order(page, rows, key: str, count: int = 6):
    """The first rows of the table are these."""
    for place, row in enumerate(rows[:count]):
        expect(page.locator(f"{ROWS} button.open").nth(place)).to_have_attribute("data-row", row.id)
        expect(column(page, key).nth(place)).to_have_text(written(row.values[key], key))


def by(rows, key: str, reverse: bool):
    return sorted((r for r in rows if key in r.values), key=lambda r: r.values[key].mean, reverse=reverse)


# table --------------------------------------------------------------------------------------------


def test_columns_sort_by_their_numbers_better_ones_first(visit, site):
    page = visit()
    rows = site.board("chest v1").rows
    in_order(page, by(rows, "accuracy", True), "accuracy")
    head(page, "Robust, worst").click()
    in_order(page, by(rows, "robust", True), "robust")
    expect(page.locator("[tabulator-field=robust][aria-sort]").first).to_have_attribute(
        "aria-sort", "descending"
    )
    head(page, "Robust, worst").click()
    in_order(page, by(rows, "robust", False), "robust")
    head(page, "Membership AUC").click()  # lower is better
    in_order(page, by(rows, "mia", False), "mia")
    expect(page).to_have_url(re.compile("sort=mia%3Aasc"))


def test_filters_leave_the_rows_that_fit(visit, site):
    page = visit()
    rows, count = site.board("chest v1").rows, page.locator("#count")
    total = sum(len(board.rows) for board in site.boards)
    expect(count).to_have_text(f"{len(rows)} of {total}")
    choose(page, "aggregator", "krum")
    kept = [row for row in rows if row.axes[1] == "krum"]
    expect(count).to_have_text(f"{len(kept)} of {total}")
    page.locator("[data-filter=q]").fill("DP-SGD static")
    kept = [row for row in kept if "dp-sgd" in row.axes[0] and row.axes[2] == "static-int8"]
    assert len(kept) == 2
    expect(count).to_have_text(f"2 of {total}")
    in_order(page, by(kept, "accuracy", True), "accuracy")
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(count).to_have_text(f"{len(rows)} of {total}")
    choose(page, "board", "")
    expect(count).to_have_text(f"{total} of {total}")
    expect(page.locator("#board")).to_contain_text("not comparable")


def test_a_board_says_under_which_conditions_it_was_measured(visit, site):
    expect(visit("#board=quickstart+v1").locator("#board")).to_contain_text(
        conditions(site.board("quickstart v1"))
    )


def test_only_a_number_that_is_equal_at_all_seeds_has_no_spread(visit):
    shown = "([low, high]) => span(byKey.get('latency'), {low, high})"
    page = visit()
    assert page.evaluate(shown, [0.0961, 0.1004]) == "0.10 – 0.10"
    assert page.evaluate(shown, [0.1004, 0.1004]) == "± 0"


@pytest.mark.parametrize("view", [("byzantine",), ("evasion@4/255", "pgd(steps=20)")], ids=len)
def test_columns_of_attacks_show_the_chosen_threat_or_attack_alone(visit, site, view):
    page = visit()
    choose(page, "attack", json.dumps(view, separators=(",", ":")))
    key = "byzantine" if len(view) == 1 else "robust"
    expect(page.locator("#board")).to_contain_text(f"Attack columns show only {' / '.join(view)}.")
    head(page, BY_KEY[key].title).click()
    rows = sorted(site.board("chest v1").rows, key=lambda row: -row.under[view][key].mean)
    for place, row in enumerate(rows[:4]):
        expect(column(page, key).nth(place)).to_have_text(written(row.under[view][key], key))
    best = [row.id for row in rows if row.under[view][key].best]
    assert best
    expect(page.locator(f"{ROWS}:has([tabulator-field={key}] .best) button.open").first).to_have_attribute(
        "data-row", best[0]
    )


def test_a_threat_that_has_one_attack_on_some_boards_has_numbers_on_all(visit, site):
    page = visit("#board=&attack=" + quote('["backdoor"]') + "&columns=backdoor,backdoor_mean")
    names = {
        row.id: {cell.attack for cell in row.cells if cell.threat == "backdoor"}
        for board in site.boards
        for row in board.rows
    }
    shown = page.evaluate("shown.map((row) => [row.id, row.backdoor, row.backdoor_mean])")
    assert {row for row, attacks in names.items() if attacks} == {row for row, *_ in shown}
    assert any(len(names[row]) == 1 for row, *_ in shown)
    assert all(number is not None for _, *numbers in shown for number in numbers)


def test_columns_are_chosen_and_tabs_have_their_own(visit):
    page = visit()
    page.locator("#chooser summary").click()
    page.get_by_role("checkbox", name="Size").uncheck()
    page.get_by_role("checkbox", name="MACs").check()
    page.keyboard.press("Escape")
    expect(head(page, "MACs")).to_be_visible()
    expect(head(page, "Size")).to_have_count(0)
    page.get_by_role("tab", name="Robustness").click()
    for title in ("Robust, worst", "Robust, mean", "Attacked, worst", "Attacked, mean", "Backdoor, mean"):
        expect(head(page, title)).to_have_count(1)
    expect(page.locator("#scatter")).to_be_hidden()
    choose(page, "board", "inversion v2")
    expect(page.locator("#board")).to_contain_text("measures nothing of this kind")
    page.locator("#board").get_by_role("button", name="digits v1").click()
    expect(page.locator("[data-filter=board]")).to_have_value("digits v1")


@pytest.mark.parametrize("width", [1400, 390])
def test_filters_that_no_row_fits_say_so_once_and_are_reset(visit, site, width):
    page = visit(width=width)
    page.locator("[data-filter=q]").fill("no such method")
    nothing = page.get_by_text("No row fits these filters.")
    expect(nothing).to_have_count(1)
    expect(nothing).to_be_in_viewport()
    for gone in ("#scatter", "#table", "#legend"):
        expect(page.locator(gone)).to_be_hidden()
    page.get_by_role("button", name="Reset the filters").click()
    expect(nothing).to_be_hidden()
    expect(page.locator("#plot .points path").first).to_be_visible()
    in_order(page, by(site.board("chest v1").rows, "accuracy", True), "accuracy")
    expect(page.get_by_role("button", name="Reset", exact=True)).to_be_focused()


def test_a_chart_without_a_point_is_not_drawn(visit):
    page = visit()
    choose(page, "defence", "none")
    page.get_by_label("Vertical").select_option("epsilon")
    expect(page.locator("#plot")).to_be_hidden()
    expect(page.locator("#front")).to_contain_text("No row can be compared in both")
    page.get_by_label("Vertical").select_option("robust")
    expect(page.locator("#plot .points path").first).to_be_visible()


def test_no_button_of_a_chart_leads_off_the_page(visit):
    page = visit()
    page.locator(f"{ROWS} button.open").first.click()
    expect(page.locator("#by-eps .main-svg").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    buttons = page.locator(".js-plotly-plot .modebar-btn")
    titles = {button.get_attribute("data-title").lower() for button in buttons.all()}
    known = {"download plot as a png", "zoom", "pan", "zoom in", "zoom out", "reset axes"}
    assert titles == known
    assert page.locator(".js-plotly-plot [href^=http]").count() == 0


# dialogs ------------------------------------------------------------------------------------------


def test_a_card_has_every_score_and_what_repeats_it(visit, site, tmp_path):
    page = visit()
    row = site.row("chest v1", "dp-sgd(epsilon=8)", "krum", "none")
    page.locator("[data-filter=q]").fill("epsilon=8 krum")
    expect(page.locator("#count")).to_contain_text("3 of")
    button = page.locator(f"button.open[data-row='{row.id}']")
    button.click()
    card = page.locator("#card")
    expect(card).to_be_visible()
    expect(card.get_by_role("heading", level=2)).to_have_text("dp-sgd(epsilon=8) / krum / none")
    for key in ("accuracy", "robust", "robust_mean", "byzantine", "mia", "size"):
        line = card.get_by_role("row").filter(
            has=page.get_by_role("rowheader", name=BY_KEY[key].header, exact=True)
        )
        expect(line.get_by_role("cell").first).to_have_text(written(row.values[key], key))
    expect(card.locator("#by-round .main-svg").first).to_be_visible()
    expect(card.locator("#by-eps .main-svg").first).to_be_visible()
    expect(card.locator("#by-round .legendtext")).to_have_count(
        4
    )  # no attack, two Byzantine ones, the backdoor
    expect(card.get_by_label("Command")).to_have_text(command(row))
    known = entries(plugin for board in site.boards for s in board.submissions for plugin in s.plugins)
    expect(card.get_by_label("BibTeX")).to_have_text("\n\n".join(bibtex(used(row), known)))
    card.get_by_text("Scenario chest-v1.yaml").click()
    expect(card.get_by_label("Scenario", exact=True)).to_contain_text("dataset: pneumonia")
    with page.expect_download() as saved:
        card.locator(".snippet").filter(has=page.get_by_label("Scenario", exact=True)).get_by_text(
            "Save"
        ).click()
    saved.value.save_as(tmp_path / "saved.yaml")
    assert saved.value.suggested_filename == "chest-v1.yaml"
    assert (tmp_path / "saved.yaml").read_text() == row.submission.scenario.text
    for text in ("record, add-remove", "creates", "noise", row.submission.environment.commit):
        expect(card.get_by_text(text).first).to_be_attached()
    expect(page).to_have_url(re.compile(f"card={row.id}"))
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(button).to_be_focused()
    expect(page).not_to_have_url(re.compile("card="))


def test_a_radius_is_written_in_grey_levels_where_it_is_a_whole_number_of_them(visit):
    page = visit("#")
    steps = [0, 1, 2, 8, 64, 128, 254, 255, 510, 765, 4000]
    short = [float(f"{step / 255:.5g}") for step in steps]  # as the page has them
    assert page.evaluate("radii => radii.map(greyLevels)", short) == steps
    others = [
        0.1,
        0.25,
        0.5,
        0.75,
        1.25,
        1.5,
        2.5,
        12.3,
    ]  # 1.5 is no 383/255, and 0.1 is better than 25.5/255
    assert page.evaluate("radii => radii.map(greyLevels)", others) == [None] * len(others)
    halves = [float(f"{half / 510:.5g}") for half in (1, 3, 15)]
    assert page.evaluate("radii => radii.map(greyLevels)", halves) == [0.5, 1.5, 7.5]


def test_radii_of_other_norms_are_no_grey_levels(visit):
    page = visit()
    cells = [("linf", 1 / 255, "1/255"), ("linf", 0.1, "0.1"), ("l2", 1.0, "1"), ("l0", 3, "3 pixels")]
    for norm, eps, text in cells:
        cell = {"norm": norm, "eps": float(f"{eps:.5g}")}
        assert page.evaluate("radiusText", cell) == text


def test_curves_by_radius_take_two_radii_of_one_norm(visit, site):
    """One point says nothing of the radius, and those of two norms share no axis."""
    page = visit()
    row = site.row("usynin-2022 v1", "none", "mean", "none")  # linf and l2, at one radius each
    page.evaluate("openCard", row.id)
    expect(page.locator("#card")).to_be_visible()
    expect(page.locator("#by-round")).to_have_count(1)
    expect(page.locator("#by-eps")).to_have_count(0)
    page.keyboard.press("Escape")
    made = """(cells) => sweeps({source: {c: cells.map(([threat, attack, norm, eps]) => ({
        y: "evasion", threat, attack, norm, eps, s: [TEXT.indexOf("robust_accuracy"), 2, 0.5]}))}})
        .map(([norm, curves]) => [norm, curves.map(({name, points}) => [name, points.map(({radius}) => radius)])])"""
    cells = [
        ("a-eps0.2", "pgd", "linf", 0.2),
        ("a-eps0.1", "pgd", "linf", 0.1),
        ("b-eps0.1", "pgd", "linf", 0.1),
        ("small", "fgsm", "linf", 0.1),
        ("large", "fgsm", "linf", 0.2),
        ("a", "pgd", "l2", 1),
    ]
    assert page.evaluate(made, cells) == [
        [
            "linf",
            [["pgd, linf (a)", [0.1, 0.2]], ["pgd, linf (b)", [0.1]], ["fgsm, linf", [0.1, 0.2]]],
        ]
    ]


def test_rows_are_compared_by_their_shared_seeds(visit, site):
    page = visit()
    first = site.row("chest v1", "none", "krum", "none")
    second = site.row("chest v1", "dp-sgd(epsilon=8)", "krum", "none")
    page.locator("[data-filter=q]").fill("krum none")
    page.get_by_role("checkbox", name="Compare none / krum / none, base").check()
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    page.get_by_role("checkbox", name="Compare dp-sgd(epsilon=8) / krum / none, base").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparison")).to_be_visible()
    for key in ("accuracy", "robust", "seconds"):
        one, shown = BY_KEY[key], page.locator("#comparison tr").filter(has_text=BY_KEY[key].title).first
        found = paired_difference(second.values[key].by_seed, first.values[key].by_seed)
        mean, low, high = (one.show(number).replace("-", "−") for number in found[:3])
        expect(shown.get_by_role("cell").first).to_contain_text(written(first.values[key], key))
        expect(shown.get_by_role("cell").last).to_contain_text(
            f"{'+' * (found.mean > 0)}{mean} [{low}, {high}]"
        )
    link = page.url
    page.reload()
    ready(page)
    expect(page.locator("#comparison")).to_be_visible()
    assert page.url == link


def test_guarantees_have_no_difference_over_seeds(visit, site):
    """What the worst seed of each row gets is no pair, and has no interval."""
    ids = [site.row("chest v1", f"dp-sgd(epsilon={e})", "krum", "none").id for e in (1, 8)]
    page = visit()
    sizes = "([id, key]) => bySeed(byId.get(id), byKey.get(key)).size"
    for id_ in ids:
        assert page.evaluate(sizes, [id_, "epsilon"]) == 0
        assert page.evaluate(sizes, [id_, "accuracy"]) == 3


def test_attacks_that_do_worse_than_guessing_do_not_differ(visit):
    """As on the command line: see test_what_does_not_compare_has_no_better_side."""
    found = visit().evaluate(
        "paired(new Map([[0, .40], [1, .41], [2, .42]]), new Map([[0, .30], [1, .31], [2, .33]]), byKey.get('mia'))"
    )
    assert found == {"mean": 0, "low": 0, "high": 0}


def test_a_flag_and_a_heading_are_shown_whole_without_scrolling(visit):
    """Half of a flag says something else."""
    page = visit("board=pneumonia-small+v1")
    flag = page.locator(f"{ROWS} .badge").filter(has_text="constant if attacked").first
    holder = page.locator("#table .tabulator-tableholder")
    heads = page.locator("#table button.head").all()
    for node in (flag, holder, *heads):
        assert node.evaluate("node => node.scrollWidth <= node.clientWidth")


def test_a_flag_of_attacked_models_alone_is_not_told_of_the_released_one(visit, site):
    """That an attack on training won is its result, and no warning of what the row releases."""
    page = visit("board=pneumonia-small+v1")
    of = "id => flagsOf(byId.get(id)).map(one => [one.text, one.released])"
    rows = {row.id: row for row in site.board("pneumonia-small v1").rows}
    found = {id_: page.evaluate(of, id_) for id_ in rows}
    for id_, row in rows.items():
        name = "constant-predictions" if row.constant else "constant if attacked"
        assert found[id_] == [[name, row.constant]]
    made = "y => { const f = [TEXT.indexOf('constant-predictions')]; return flagsOf({source: {f, c: [{y, f}]}}); }"
    assert page.evaluate(made, "clean")[0]["text"] == "constant-predictions"
    assert page.evaluate(made, "byzantine")[0]["text"] == "constant if attacked"
    legend = page.locator("#legend div").filter(has_text="constant if attacked")
    expect(legend).to_contain_text("only after an attack on training")
    attacked = next(id_ for id_, row in rows.items() if not row.constant)
    expect(visit(f"card={attacked}").locator("#card")).to_contain_text("Without an attack it does not.")


def test_flags_without_room_are_counted(visit, site):
    page = visit("board=byzantine-fashion+v2")
    row = next(row for row in site.board("byzantine-fashion v2").rows if len(row.flags) == 3)
    expect(page.locator(ROWS).first).to_be_visible()
    texts = (
        "([id, room]) => [...stateNode(byId.get(id), room).children].map(one => one.firstChild.textContent)"
    )
    flags = ["constant if attacked", "NaN if attacked", "dropped if attacked"]
    assert page.evaluate(texts, [row.id, 1]) == ["verified", "+2", flags[0]]
    assert page.evaluate(texts, [row.id, 3]) == ["verified", *flags]


def test_a_row_is_called_first_by_what_differs_on_its_board(visit, site):
    """Thirty rows called `none` in bold tell nobody which rule they are of."""
    page = visit("board=byzantine-fashion+v2")
    name = page.locator(f"{ROWS} [tabulator-field=name] button").filter(has_text="signguard")
    expect(name.locator("b")).to_have_text("signguard")
    expect(name.locator("small")).to_have_text("none / none")
    expect(head(page, "Configuration")).to_contain_text("aggregator, defence / compressor")
    page = visit("board=pneumonia-small+v1")
    expect(head(page, "Configuration")).to_contain_text("defence, aggregator / compressor")
    defences = {"none", "dp-sgd", "adversarial-training", "adversarial-training + dp-sgd"}
    names = page.locator(f"{ROWS} [tabulator-field=name] b").all_inner_texts()
    assert names
    assert set(names) <= defences


def test_rows_of_different_methods_do_not_look_alike(visit, site):
    """A name that is cut off within its first method's parameters says nothing of the second."""
    page = visit("board=pneumonia-small+v1")
    names = page.evaluate("ROWS.map(row => [row.board, row.short.defence, row.defence])")
    own = {(short, whole) for board, short, whole in names if board == "pneumonia-small v1"}
    assert {short for short, _ in own} == {
        "none",
        "dp-sgd",
        "adversarial-training",
        "adversarial-training + dp-sgd",
    }
    for board in site.boards:
        pairs = {(short, whole) for label, short, whole in names if label == board.label}
        assert len({short for short, _ in pairs}) == len(pairs)
    # Several settings of one method keep what tells them apart.
    assert {"dp-sgd(epsilon=1)", "dp-sgd(epsilon=8)"} <= {s for label, s, _ in names if label == "chest v1"}
    titles = [one.get_attribute("title") for one in page.locator(f"{ROWS} button.open").all()]
    assert "dp-sgd(epsilon=8,max_grad_norm=1) / mean / none" in titles


def test_the_name_of_a_board_is_shown_whole(visit):
    page = visit("board=")
    for text in page.locator(f"{ROWS} [tabulator-field=board] .text").all():
        assert text.evaluate("node => node.scrollHeight <= node.clientHeight + 1")


# permalinks, files --------------------------------------------------------------------------------


def test_a_permalink_restores_what_was_seen(visit, site):
    page = visit()
    choose(page, "board", "digits v1")
    page.get_by_role("tab", name="Aggregation").click()
    choose(page, "compressor", "none")
    head(page, "Attacked, worst").click()
    rows = [row for row in site.board("digits v1").rows if row.axes[2] == "none"]
    order = by(rows, "byzantine", True)
    in_order(page, order, "byzantine")
    page.locator(f"button.open[data-row='{order[1].id}']").click()
    expect(page.locator("#card")).to_be_visible()
    page.reload()
    again = page
    ready(page)
    expect(again.locator("#card h2")).to_contain_text(order[1].axes[1])
    again.keyboard.press("Escape")
    in_order(again, order, "byzantine")
    expect(again.get_by_role("tab", name="Aggregation")).to_have_attribute("aria-selected", "true")
    expect(again.locator("[data-filter=compressor]")).to_have_value("none")
    again.get_by_role("button", name="Copy link").click()
    expect(again.locator("#permalink")).to_have_text(re.compile("^Copied"))


def test_back_undoes_a_tab_and_closes_what_was_opened(visit):
    page = visit("board=digits+v1")
    chosen = page.get_by_role("tab", selected=True)
    page.get_by_role("tab", name="Aggregation").click()
    choose(page, "compressor", "none")
    page.locator("button.open").first.click()
    expect(page.locator("#card")).to_be_visible()
    page.go_back()
    expect(page.locator("#card")).to_be_hidden()
    expect(chosen).to_have_text("Aggregation")
    expect(page.locator("[data-filter=compressor]")).to_have_value("none")
    page.go_forward()
    expect(page.locator("#card")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()
    page.locator("button.open").first.click()
    page.keyboard.press("Escape")  # closed by hand, it leaves no step
    expect(page.locator("#card")).to_be_hidden()
    expect(page).not_to_have_url(re.compile("card="))
    page.go_back()
    expect(page.locator("#card")).to_be_visible()  # the one that Forward brought
    page.go_back()
    expect(page.locator("#card")).to_be_hidden()
    page.go_back()
    expect(chosen).to_have_text("Overview")
    page.go_forward()
    expect(chosen).to_have_text("Aggregation")


def test_permalinks_that_make_no_sense_show_the_start(visit, site):
    page = visit("tab=nothing&board=x&card=1&compare=2,3&side=1&sort=a:b&columns=c&attack={}&x=1&ranking=<b>")
    expect(page.get_by_role("tab", name="Overview")).to_have_attribute("aria-selected", "true")
    expect(page.locator("[data-filter=board]")).to_have_value("chest v1")
    expect(page.locator("dialog[open]")).to_have_count(0)
    gone = page.get_by_text("This page does not have what the link names: the board x and the row it opens.")
    expect(gone).to_be_visible()
    expect(visit("tab=robustness").locator("#gone")).to_be_hidden()


def test_the_shown_table_is_exported_as_csv_and_latex(visit, site, tmp_path):
    page = visit()
    choose(page, "defence", "dp-sgd(epsilon=1)")
    rows = by([r for r in site.board("chest v1").rows if r.axes[0] == "dp-sgd(epsilon=1)"], "accuracy", True)
    in_order(page, rows, "accuracy", len(rows))
    texts = {}
    for name in ("CSV", "LaTeX"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name, exact=True).click()
        saved.value.save_as(tmp_path / name)
        texts[name] = (tmp_path / name).read_text(encoding="utf-8")
    table = list(csv.DictReader(texts["CSV"].splitlines()))
    assert [(line["defence"], line["aggregator"], line["compressor"]) for line in table] == [
        r.axes for r in rows
    ]
    for line, row in zip(table, rows, strict=True):
        value = row.values["robust"]
        assert float(line["robust"]) == pytest.approx(value.mean, rel=1e-4)
        assert float(line["robust_low"]) == pytest.approx(value.estimate.low, rel=1e-4)
        assert (line["robust_seeds"], line["robust_signs"]) == ("3", value.signs)
    lines = [line for line in texts["LaTeX"].splitlines() if line.startswith("dp-sgd(epsilon=1)")]
    assert len(lines) == len(rows)
    assert lines[0].count("&") == texts["LaTeX"].splitlines()[5].count("&")
    accuracy = rows[0].values["accuracy"]
    low, high = (BY_KEY["accuracy"].show(bound) for bound in accuracy.estimate[1:3])
    assert f"& {written(accuracy, 'accuracy')} {{\\scriptsize [{low}, {high}]}} &" in lines[0]
    assert "\\begin{tabular}" in texts["LaTeX"]
    assert not re.search(r"(?<!\\)%(?! \\usepackage)", texts["LaTeX"])


def test_a_latex_table_says_what_its_numbers_are_of(visit, site, tmp_path):
    """In a paper nothing stands beside it: which attack, which delta, what the marks mean."""
    page = visit("board=chest+v1&attack=%5B%22byzantine%22%2C%22alie%22%5D")
    with page.expect_download() as saved:
        page.get_by_role("button", name="LaTeX", exact=True).click()
    saved.value.save_as(tmp_path / "attack.tex")
    text = (tmp_path / "attack.tex").read_text(encoding="utf-8")
    assert "\\caption{Board chest v1. Attack columns show only byzantine / alie. Means over seeds" in text
    assert site.row("chest v1", "dp-sgd(epsilon=1)", "mean", "none").claim.delta == 1e-5
    assert " {\\scriptsize $\\delta$ 1.00e-5} &" in text
    captions = {}
    for board, tab in (("byzantine-fashion+v2", "aggregation"), ("quickstart+v1", "overview")):
        page = visit(f"board={board}&tab={tab}")
        with page.expect_download() as saved:
            page.get_by_role("button", name="LaTeX", exact=True).click()
        saved.value.save_as(tmp_path / "marks.tex")
        captions[tab] = (tmp_path / "marks.tex").read_text(encoding="utf-8").splitlines()[-2]
    caption = captions["aggregation"]
    assert ["a single seed has no interval" in each for each in captions.values()] == [False, True]
    assert "\\dag{} lacks attacks or seeds that this board asks for" in caption
    assert "\\ddag" not in caption


def test_no_name_is_a_command_of_latex(visit):
    page = visit()
    written = page.evaluate(
        "names => names.map(tex)", [r"a<b>|c", r"\x_{1}^2~&%$#", "[2pt] a", "*b", "a [*]"]
    )
    assert written == [
        r"a\textless{}b\textgreater{}\textbar{}c",
        r"\textbackslash{}x\_\{1\}\textasciicircum{}2\textasciitilde{}\&\%\$\#",
        "{[}2pt] a",
        "{*}b",
        "a [*]",
    ]


def test_ranks_show_the_chosen_ranking(visit, site):
    ranking = next(
        r
        for r in rankings(site.boards)[0]
        if (r.axis, r.board, r.column.key) == ("aggregator", None, "byzantine")
    )
    page = visit()
    page.get_by_role("tab", name="Ranks").click()
    expect(page.locator("#rows")).to_be_hidden()
    shown = page.locator("#ranks article:visible")
    expect(shown).to_have_count(1)
    page.get_by_label("Ranking").select_option(label="Aggregators by Attacked, worst")
    expect(shown.get_by_role("heading")).to_have_text("Aggregators by Attacked, worst [%] ↑")
    expect(shown).to_contain_text(f"over {len(ranking.blocks)} data sets")
    expect(page.locator("#ranks")).to_contain_text(
        "Values marked †, ‡, ‖ or ! and infinite values are left out"
    )
    for text in (*ranking.blocks, *ranking.methods):
        expect(shown).to_contain_text(text)
    expect(shown.locator("svg circle")).to_have_count(len(ranking.methods))
    link = page.url.partition("#")[2]
    visit()
    expect(page.locator("#ranks")).to_be_hidden()
    again = visit(link)
    expect(again.locator("#ranks article:visible h2")).to_have_text("Aggregators by Attacked, worst [%] ↑")
    again.get_by_role("tab", name="Overview").click()
    expect(again.locator(ROWS).first).to_be_visible()


# paper --------------------------------------------------------------------------------------------


@pytest.fixture
def on_paper(page):
    """on_paper() -> nothing; the page is then as it is printed, until the test ends."""

    def go():
        page.set_viewport_size({"width": 977, "height": 720})  # Letter on its side, without its margins
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")

    yield go
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(page.locator("#printed")).to_have_count(0)


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("columns", ["", "all"])
def test_paper_has_all_rows_and_columns_that_are_shown(visit, site, on_paper, width, columns):
    page = visit("board=digits+v1&compressor=none&sort=accuracy:asc", width, "dark")
    if columns:
        page.locator("#chooser summary").click()
        for box in page.locator("#chooser input").all():
            box.check()
        page.keyboard.press("Escape")
    heads = page.locator("#table button.head").all_inner_texts()
    rows = by([row for row in site.board("digits v1").rows if row.axes[2] == "none"], "accuracy", False)
    on_paper()
    printed = page.locator("#printed table")
    expect(printed.locator("caption")).to_have_text("Board: digits v1; Compressor: none")
    expect(printed.locator("thead th")).to_have_count(len(heads))
    for head, shown in zip(heads, printed.locator("thead th").all(), strict=True):
        expect(shown).to_be_visible()
        assert " ".join(shown.inner_text().split()).startswith(head.split("\n")[0])
    expect(printed.locator("tbody tr")).to_have_count(len(rows))
    for row, line in zip(rows, printed.locator("tbody tr").all(), strict=True):
        expect(line).to_be_visible()
        expect(line.get_by_role("rowheader")).to_contain_text(f"{row.axes[0]}{row.axes[1]} / {row.axes[2]}")
        expect(line).to_contain_text(written(row.values["accuracy"], "accuracy"))
    assert overflow(page) <= 0
    for control in ("#table", "#filters", "#theme", "#tabs", ".tools button", ".modebar"):
        expect(page.locator(control).first).to_be_hidden()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("opened", ["card", "comparison"])
def test_an_open_dialog_is_printed_whole_and_alone(visit, on_paper, opened):
    page = visit(scheme="dark")
    if opened == "card":
        page.locator(f"{ROWS} button.open").first.click()
    else:
        for place in (0, 1):
            page.locator(f"{ROWS} input[type=checkbox]").nth(place).check()
        page.get_by_role("button", name="Compare").click()
    dialog = page.locator(f"#{opened}")
    expect(dialog).to_be_visible()
    on_paper()
    expect(page.locator("main")).to_be_hidden()
    assert dialog.evaluate("node => node.clientHeight >= node.scrollHeight")
    assert overflow(page) <= 0


def test_printing_makes_the_page_ready_and_puts_it_back(visit, site):
    page = visit(scheme="dark")
    page.evaluate(
        "addEventListener('beforeprint', () => "
        "{ window.printed = document.querySelectorAll('#printed tbody tr').length; }, {once: true})"
    )
    wide = page.locator("#plot .main-svg").first.bounding_box()["width"]
    assert page.pdf().startswith(b"%PDF")
    assert page.evaluate("printed") == len(site.board("chest v1").rows)
    expect(page.locator("#printed")).to_have_count(0)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.locator("#plot .main-svg").first.bounding_box()["width"] == wide


# for everybody ------------------------------------------------------------------------------------


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_shows_everything_within_its_width(visit, site, width):
    page = visit(width=width)
    for tab in ("Overview", "Robustness", "Privacy", "Compression", "Aggregation", "Ranks"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert overflow(page) <= 0, tab
    for board in site.boards:
        page = visit(f"board={quote(board.label)}", width=width)
        assert overflow(page) <= 0, board.label
    page = visit(width=width)
    page.locator(f"{ROWS} button.open").first.click()
    expect(page.locator("#card")).to_be_visible()
    box = page.locator("#card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.locator("#card").evaluate("node => node.scrollWidth - node.clientWidth") <= 0
    assert overflow(page) <= 0


@pytest.mark.parametrize("link", ["", "x=mia"])
def test_a_phone_shows_an_axis_and_a_legend_whole(visit, link):
    page = visit(link, width=320)
    plot, title, legend = (
        page.locator(f"#plot{part}").bounding_box() for part in ("", " .xtitle", " .legend")
    )
    assert plot["x"] <= title["x"]
    assert title["x"] + title["width"] <= plot["x"] + plot["width"]
    assert title["y"] + title["height"] <= legend["y"] + 4  # its first line has room above
    assert legend["y"] + legend["height"] <= plot["y"] + plot["height"]


@pytest.mark.parametrize("width", [1400, 320])
def test_many_curves_leave_room_for_the_axis(visit, site, width):
    """Seven attacks, one with a long name: their legend covered the axis, and left a third of the height to curves."""
    page = visit(width=width)
    page.evaluate("openCard", site.row("evasion-compression v2", "none", "mean", "none").id)
    plot, inside, title, legend = (
        page.locator(f"#by-eps {part}").first.bounding_box()
        for part in (".main-svg", ".nsewdrag", ".xtitle", ".legend")
    )
    assert inside["height"] > 120
    assert title["y"] + title["height"] <= legend["y"]
    assert legend["x"] + legend["width"] <= plot["x"] + plot["width"] + 1
    assert legend["y"] + legend["height"] <= plot["y"] + plot["height"]
    page.keyboard.press("Escape")


def test_series_differ_in_more_than_their_colour(visit):
    """On grey paper, and for readers who see fewer colours."""
    for link in ("board=byzantine-fashion+v2", "board=chest+v1"):
        page = visit(link)
        traces = page.evaluate(
            "$('plot').data.filter((one) => one.mode === 'markers').map((one) => one.marker)"
        )
        assert len({(one["color"], one["symbol"]) for one in traces}) == len(traces) > 1
        assert len({one["symbol"] for one in traces}) == min(7, len(traces))


def test_the_keyboard_reaches_everything(visit, site):
    page = visit()
    page.get_by_role("tab", name="Overview").focus()
    for key, tab in (
        ("ArrowRight", "Robustness"),
        ("End", "Ranks"),
        ("ArrowRight", "Overview"),
        ("Home", "Overview"),
    ):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=tab)).to_be_focused()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Tab")
    expect(page.locator("[data-filter=board]")).to_be_focused()
    # From the column's header on: sort, tick, open, close, compare.
    head(page, "Uplink").focus()
    page.keyboard.press("Enter")
    rows = by(site.board("chest v1").rows, "uplink", False)
    expect(column(page, "uplink").first).to_have_text(written(rows[0].values["uplink"], "uplink"))
    boxes = page.locator(f"{ROWS} input[type=checkbox]")
    for place in (0, 1):
        boxes.nth(place).focus()
        page.keyboard.press("Space")
        expect(boxes.nth(place)).to_be_checked()
    page.keyboard.press("Tab")
    button = page.locator(f"{ROWS} button.open").nth(1)
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#card h2")).to_be_focused()
    page.keyboard.press("Escape")
    expect(button).to_be_focused()
    page.get_by_role("button", name="Compare").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#comparison h2")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()


def test_skipping_to_the_results_keeps_what_the_link_shows(visit):
    page = visit("tab=privacy&board=privacy+v4&q=dp")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    expect(page).to_have_url(re.compile("tab=privacy"))
    expect(page.get_by_role("tab", name="Privacy")).to_have_attribute("aria-selected", "true")
    expect(page.locator("[data-filter=q]")).to_have_value("dp")


def test_dark_follows_the_system_until_the_reader_chooses(visit):
    page = visit(scheme="dark")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 23)"
    page.get_by_role("button", name="Use the light theme").click()
    expect(root).to_have_attribute("data-theme", "light")
    page.reload()
    ready(page)
    expect(root).to_have_attribute("data-theme", "light")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core not found: set HARNESS_AXE to its axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit, scheme):
    page = visit(scheme=scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))

    def faults() -> list[str]:
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{one['id']}: {node['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    assert faults() == []
    page.locator(f"{ROWS} button.open").first.click()
    expect(page.locator("#by-eps .main-svg").first).to_be_visible()
    assert faults() == []
    page.keyboard.press("Escape")
    for place in (0, 1):
        page.locator(f"{ROWS} input[type=checkbox]").nth(place).check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparison")).to_be_visible()
    assert faults() == []
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Ranks").click()
    expect(page.locator("#ranks article:visible")).to_have_count(1)
    assert faults() == []


# hostile ------------------------------------------------------------------------------------------

MARKUP = "</script><script>pwned=1</script><img src=x onerror=pwned=1><b onclick=pwned=1>{{7*7}}${pwned=1}"


def marked(value, path=()):
    """Decoded JSON of a submission with markup put into every text that may be free."""
    if isinstance(value, dict):
        return {name: marked(inner, (*path, name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [marked(inner, (*path, name)) for name, inner in enumerate(value)]
    closed = {
        "kind",
        "family",
        "status",
        "direction",
        "verdict",
        "hash",
        "fingerprint",
        "commit",
        "id",
        "source",
    }
    formed = path[-1:] == ("name",) and path[0] in ("name", "scenario")
    free = isinstance(value, str) and not formed and (path[-1] not in closed or path[0] == "plugins")
    return f"{value[:9]}{MARKUP}" if free and path[-1] != "source" else value


def test_a_row_says_which_packages_it_needs_and_is_found_by_them(page, site, tmp_path):
    plain, other = (synthetic.realistic(name, rows=2) for name in ("plain", "other"))
    other["plugins"][0] |= {"distribution": "their-package", "version": "2.1"}
    synthetic.put(tmp_path, plain)
    synthetic.put(tmp_path, other)
    build(tmp_path)
    file = site.page.with_name("hostile.html")
    shutil.copy(tmp_path / "index.html", file)
    page.goto(file.as_uri())
    ready(page)
    every = page.locator(f"{ROWS} button.open").count()
    page.locator("[data-filter=q]").fill("their-package")
    expect(page.locator(f"{ROWS} button.open")).to_have_count(every // 2)
    page.locator(f"{ROWS} button.open").first.click()
    expect(page.locator("#card")).to_contain_text("v1.yaml, which needs their-package 2.1, then:")


def test_a_board_without_a_score_says_so(page, site, tmp_path):
    lost = synthetic.realistic("lost", rows=2)
    for cell in lost["cells"]:
        cell["status"] = "failed"
        for seed in cell["seeds"].values():
            seed |= {"scores": {}, "error": "ValueError: boom", "curve": [], "flags": []}
    synthetic.put(tmp_path, lost)
    build(tmp_path)
    shutil.copy(tmp_path / "index.html", site.page.with_name("hostile.html"))
    page.goto(site.page.with_name("hostile.html").as_uri())
    ready(page)
    expect(page.locator("#board")).to_contain_text("No cell of chest v1 was scored: each failed or was not")
    page.locator(f"{ROWS} button.open").nth(1).click()  # of DP-SGD
    card = page.locator("#card")
    expect(card).to_contain_text("No cell of this row was scored: each failed or was not applicable.")
    expect(card).to_contain_text("Not known, as no cell was scored.")
    expect(card).not_to_contain_text("no accounted noise")


def test_markup_in_every_text_is_shown_and_never_run(page, site, tmp_path):
    one = synthetic.realistic("lab", rows=2)
    one |= {"official": False, "unofficial_because": ["why"], "note": "note", "url": "javascript:pwned=1"}
    one["verification"] = {
        "verdict": "diverged", "when": "now", "cells": 1, "environment": synthetic.environment(), "differences": ["d"],
    }  # fmt: skip
    for cell in one["cells"]:
        cell["norm"], cell["config"] = "linf", {"defence": [{"soteria": {"layer": "name"}}]}
        for seed in cell["seeds"].values():
            seed["flags"] = ["flag"]
    synthetic.put(tmp_path, marked(one))
    build(tmp_path)
    file = site.page.with_name("hostile.html")
    shutil.copy(tmp_path / "index.html", file)
    page.goto(file.as_uri())
    ready(page)
    expect(page.locator(f"{ROWS} button.open").first).to_contain_text(MARKUP[:30])
    for tab in ("Robustness", "Privacy", "Compression", "Aggregation", "Ranks", "Overview"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#board")).to_contain_text(f"Chest X-r{MARKUP}"[:40])
    page.locator("[data-filter=q]").fill("onerror")
    page.locator("#plot .points path").first.hover(force=True)
    page.locator(f"{ROWS} button.open").first.click()
    card = page.locator("#card")
    for details in card.locator("details > summary").all():
        details.click()
    for text in ("note", "why", "linf", "flag", "A. Author", "d"):
        expect(card.get_by_text(f"{text}{MARKUP}"[:40]).first).to_be_attached()
    assert card.locator("img, script, b[onclick], a[href^=javascript]").count() == 0
    page.keyboard.press("Escape")
    for place in (0, 1):
        page.locator(f"{ROWS} input[type=checkbox]").nth(place).check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparison")).to_contain_text(MARKUP[:30])
    assert page.locator("img, [onclick], [onerror]").count() == 0
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.evaluate("document.scripts.length") == page.evaluate(
        "document.body.querySelectorAll(':scope > script').length"
    )


def test_contributed_scores_are_columns_that_sort_and_export(page, tmp_path):
    """With dots, commas and underscores in their names, and intervals of which no sign is cut off."""
    cells = [
        synthetic.cell(
            (name, "mean", "none", "none", "none"), "clean", {"accuracy": [0.5] * 3, "a.b_c": numbers}
        )
        for name, numbers in (
            ("low", [-0.6, 0.1, 0.8]),
            ("high", [7.0, 7.1, 7.2]),
            ("middle", [2.0, 2.1, 2.2]),
        )
    ]
    cells.append(synthetic.cell(("lacks", "mean", "none", "none", "none"), "clean", {"accuracy": [0.5] * 3}))
    file = synthetic.plain("lab", cells)
    file["units"]["a.b_c"] = {"unit": "%_x", "direction": "higher", "description": "a <b>score</b>"}
    synthetic.put(tmp_path, file)
    build(tmp_path)
    other = page.context.new_page()
    failures = []
    other.on("pageerror", lambda error: failures.append(str(error)))
    other.goto((tmp_path / "index.html").as_uri() + "#sort=a.b_c:desc&x=accuracy&y=a.b_c")
    ready(other)
    numbers = other.locator(f"{ROWS} [tabulator-field='a.b_c']")
    expect(numbers).to_have_text([re.compile(text) for text in ("^7.100", "^2.100", "^0.100", "^–$")])
    small = numbers.nth(2).locator("small")
    expect(small).to_have_text("−1.639 – 1.839")
    left = "node => node.getBoundingClientRect().left"
    assert small.evaluate(left) >= numbers.nth(2).evaluate(left)
    expect(other.locator("#plot .ytitle")).to_have_text("a.b_c [%_x], higher is better")
    expect(other.locator("#legend")).to_contain_text("a <b>score</b>")
    head(other, "a.b_c").click()
    expect(numbers.first).to_have_text(re.compile("^0.100"))
    with other.expect_download() as caught:
        other.locator("#latex").click()
    text = Path(caught.value.path()).read_text()
    assert r"a.b\_c [\%\_x] $\uparrow$" in text
    with other.expect_download() as caught:
        other.locator("#csv").click()
    lines = list(csv.DictReader(Path(caught.value.path()).read_text().splitlines()))
    assert [line["a.b_c"] for line in lines] == ["0.1", "2.1", "7.1", ""]
    assert failures == []
    other.close()
