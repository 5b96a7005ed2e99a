"""The explorable tree in a real browser; left out where there is none."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.report_page import EVIL
from tests.run_folder_sample import write_sample_run
from training.report.page import write_report
from training.report.records import read_run
from training.report.search_tree import read_tree

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]

# Every action is what a hand does: a click lands on what lies under the pointer, a key on what has
# the focus. The answers are written into the page.
DRIVER = """
const answers = {};
const svg = document.getElementById("explorer-tree");
const picker = document.getElementById("explorer-patient");
const heading = () => document.querySelector("#explorer-node h4").textContent;
const items = () => document.querySelectorAll('#explorer-tree [role="treeitem"]').length;
const chosen = () => Number(document.querySelector("#explorer-tree .chosen").dataset.node);
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const clickAt = (x, y) => document.elementFromPoint(x, y).dispatchEvent(
  new MouseEvent("click", { clientX: x, clientY: y, bubbles: true }));
const point = (name, type, x, y) => svg.dispatchEvent(
  new PointerEvent(type, { pointerId: 1, button: 0, clientX: x, clientY: y, bubbles: true }));
const place = () => document.querySelector("#explorer-tree > g").getAttribute("transform");
document.documentElement.style.scrollBehavior = "auto";
svg.scrollIntoView({ block: "center" });

answers.patient = picker.options[picker.selectedIndex].text;
answers.start = [heading(), items(), document.getElementById("tree-static").hidden];
svg.focus();
press("Home");
answers.home = chosen();
press("ArrowRight");
answers.child = chosen();
press("ArrowDown");
answers.sibling = chosen();
press("ArrowUp");
press("ArrowLeft");
answers.parent = chosen();
press("Enter");
answers.folded = [items(), document.querySelector(".chosen").getAttribute("aria-expanded")];
press("ArrowRight");
answers.unfolded = [items(), document.querySelector(".chosen").getAttribute("aria-expanded")];
press("End");
answers.end = chosen();
document.getElementById("explorer-fit").click();
const mark = document.querySelector('[data-node="1"] circle:not(.ring)').getBoundingClientRect();
clickAt(mark.left + mark.width / 2, mark.top + mark.height / 2);
answers.clicked = chosen();
answers.said = document.getElementById("explorer-node").textContent;
const before = place();
point(0, "pointerdown", 300, 300);
point(0, "pointermove", 340, 310);
point(0, "pointerup", 340, 310);
answers.panned = [before, place()];
press("+");
answers.zoomed = place();
document.getElementById("explorer-unvisited").click();
answers.visited = items();
document.getElementById("explorer-best").click();
answers.best = [chosen(), document.querySelectorAll("#explorer-tree .more").length];
picker.selectedIndex = 2;
picker.dispatchEvent(new Event("change"));
answers.third = [picker.options[2].text, document.querySelector('[data-node="0"]') !== null];
document.getElementById("tree-list").open = true;
document.getElementById("tree-list").dispatchEvent(new Event("toggle"));
answers.rows = document.querySelectorAll("#tree-rows tr").length;
answers.cells = document.querySelector("#tree-rows td.prose").textContent;
document.getElementById("explorer-next").click();
answers.fourth = picker.selectedIndex;
answers.images = document.querySelectorAll("img").length;
const result = document.createElement("output");
result.id = "answers";
result.textContent = JSON.stringify(answers);
document.body.append(result);
"""


def dom_of(path, profile, width=1200):
    """The page's elements once its script has run."""
    finished = subprocess.run(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"--window-size={width},1000",
            "--virtual-time-budget=3000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return finished.stdout


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = write_sample_run(
        tmp_path_factory.mktemp("runs") / "run", stages=("cohort", "expert", "search")
    )
    for path in sorted((folder / "search" / "trees").glob("*.json"))[2:3]:
        record = json.loads(path.read_text())
        for node in record["nodes"]:
            node |= {"question": EVIL, "answer": EVIL}
        path.write_text(json.dumps(record))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def driven(run_dir, tmp_path_factory):
    """What the driver saw, in a copy of the page that lets it run."""
    folder = tmp_path_factory.mktemp("driven")
    page = (run_dir / "report.html").read_text()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    page = page.replace("</body>", f"<script>{DRIVER}</script></body>")
    (folder / "page.html").write_text(page)
    dom = dom_of(folder / "page.html", folder / "profile")
    found = re.search(r'<output id="answers">(.*?)</output>', dom, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def opened(run_dir):
    """The tree that the page opens with."""
    trees = [read_tree(record) for record in read_run(run_dir).trees.read([])]
    return max(trees, key=lambda nodes: sum(node.visit_count > 0 for node in nodes))


def test_the_pages_own_policy_lets_its_script_run(run_dir, tmp_path):
    dom = dom_of(run_dir / "report.html", tmp_path / "profile", width=420)

    assert dom.count('role="treeitem"') > 10
    assert re.search(r'<div id="tree-static" hidden', dom)


def test_a_browser_opens_the_largest_tree_at_its_best_final(driven, opened):
    best = next(node for node in opened if node.is_terminal and node.is_on_best_path)

    assert driven["start"][0].startswith(f"#{best.number}: ")
    assert driven["start"][1:] == [len(opened), True]
    assert f"({len(opened)} nodes, best R" in driven["patient"]


def test_keys_go_from_node_to_node(driven, opened):
    root = opened[0]
    best = next(node for node in opened if node.is_terminal and node.is_on_best_path)

    assert driven["home"] == driven["parent"] == 0
    assert driven["child"] == root.children[0].number
    assert driven["sibling"] == root.children[1].number
    assert driven["folded"] == [1, "false"]
    assert driven["unfolded"] == [len(opened), "true"]
    assert driven["end"] == best.number


def test_a_click_says_what_a_node_says(driven, opened):
    assert driven["clicked"] == 1
    assert opened[1].question in driven["said"]
    assert opened[1].answer in driven["said"]
    assert f"{opened[1].visit_count} of {opened[0].visit_count}" in driven["said"]


def test_the_tree_can_be_moved_enlarged_and_folded(driven, opened):
    before, after = driven["panned"]
    best = next(node for node in opened if node.is_terminal and node.is_on_best_path)

    assert before != after != driven["zoomed"]
    assert driven["visited"] == sum(node.visit_count > 0 for node in opened)
    assert driven["best"][0] == best.number
    assert driven["best"][1] > 0


def test_another_patients_tree_is_text_whatever_it_says(driven):
    assert driven["third"][1]
    assert driven["rows"] > 0
    assert driven["cells"] == EVIL
    assert driven["images"] == 0
    assert driven["fourth"] == 3
