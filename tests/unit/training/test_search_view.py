import io

from rich.console import Console

from actors.search_totals import SearchTotals
from tests.unit.actors.test_search_totals import progress, summary
from training.run.progress import Display
from training.search.view import SearchView, search_lines, search_result_line


def test_the_lines_say_where_the_search_stands():
    lines = search_lines(progress())

    assert lines == [
        "rollouts",
        "2/6 patients done, 0.50 rollouts/s, 57 decoded tokens/s, cache hits 91.0%",
        "trees in flight 4, best R -0.250, invalid scores 1.5%",
        "17 trajectories, 400 requests, 1,234 decoded tokens",
    ]


def test_a_label_free_search_is_marked():
    lines = search_lines(progress(value="label_free"))

    assert lines[2] == "trees in flight 4, best label-free value -0.250, invalid scores 1.5%"


def test_a_full_cache_is_said():
    assert search_lines(progress(num_held=3))[2].startswith(
        "trees in flight 4 (3 wait for the engines' cache), "
    )


def test_nothing_grows_while_the_actors_start():
    starting = search_lines(progress(num_actors=0, num_trees=0))
    finished = search_lines(progress(num_actors=0, num_trees=0, num_finished=6))

    assert starting[2].startswith("search actors start, best R")
    assert finished[2].startswith("trees in flight 0, best R")


def test_before_the_first_request_nothing_is_made_up():
    nothing = progress(
        prefill_tokens=0, prefill_computed_tokens=0, scores=0, invalid_scores=0, best_reward=None
    )

    text = "\n".join(search_lines(nothing))

    assert "cache hits -" in text
    assert "best R -," in text
    assert "invalid scores -" in text


def test_the_totals_are_one_line():
    totals = SearchTotals.of([summary("a"), summary("b")])

    line = search_result_line({**totals.ledger(), "value": "reward"})

    assert line == (
        "search: 2 patients, 8 rollouts, 6 trajectories, 4 kept, best R -0.500, 40 requests "
        "(0 from logs), 600 decoded tokens, cache hits 90.0%, invalid scores 11.1%"
    )


def test_the_bar_counts_rollouts_and_the_rest_stands_under_it():
    stream = io.StringIO()
    console = Console(file=stream, width=110, force_terminal=True, soft_wrap=True)

    with Display(console).stage("search") as move:
        SearchView("run", move)(progress())

    shown = stream.getvalue()
    assert "20/48" in shown
    assert "2/6 patients done" in shown
    assert "best R -0.250" in shown


def test_a_log_has_a_sign_of_life_in_one_line(monkeypatch):
    monkeypatch.setattr("training.run.progress.LOG_INTERVAL_S", 0)
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=False, soft_wrap=True)

    with Display(console).stage("search") as move:
        SearchView("run", move)(progress())

    said = stream.getvalue().splitlines()
    assert said[1].startswith("search: 20/48 rollouts, 2/6 patients done, 0.50 rollouts/s, ")
    assert len(said) == 3
