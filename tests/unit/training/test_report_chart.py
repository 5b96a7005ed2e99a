import math
import re

import pytest

from training.report.chart import (
    Axis,
    Chart,
    mixed,
    nice_ticks,
    padded_range,
    shortened,
    step_axis,
    tick_texts,
)


def test_ticks_are_round_and_inside_the_range():
    assert nice_ticks(0, 1) == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert nice_ticks(-0.93, 0.31) == pytest.approx((-0.5, 0.0))
    assert nice_ticks(3, 3) == (3,)


def test_tick_texts_have_the_decimals_that_all_ticks_need():
    assert tick_texts((0, 0.25, 0.5)) == ("0", "0.25", "0.50")
    assert tick_texts((0, 500, 1000)) == ("0", "500", "1,000")
    assert tick_texts(nice_ticks(0, 0.0005)) == (
        "0",
        "0.0001",
        "0.0002",
        "0.0003",
        "0.0004",
        "0.0005",
    )
    assert tick_texts(()) == ()


def test_a_padded_range_is_never_empty_and_ignores_what_is_not_finite():
    assert padded_range([]) == (0.0, 1.0)
    low, high = padded_range([2.0, 2.0, math.nan])
    assert low < 2 < high
    assert padded_range([0.0, 1.0], include=[0.0])[0] == 0.0
    low, high = padded_range([0.0], include=[0.0])
    assert low < high


def test_steps_have_whole_ticks():
    assert step_axis([1, 2]).positions() == (1, 2)
    assert step_axis([3]).positions() == (3,)
    assert step_axis([]).positions() == (0, 1)


def test_a_chart_maps_data_to_pixels_with_y_upwards():
    chart = Chart(
        label="x", x=Axis(low=0, high=10), y=Axis(low=0, high=1), width=154, left=54, right=0
    )

    assert chart.at_x(5) == pytest.approx(104)
    assert chart.at_y(1) == pytest.approx(12)
    assert chart.at_y(0) == pytest.approx(240)


def test_every_text_of_a_chart_is_escaped():
    evil = "<script>alert(1)</script>\"'"
    chart = Chart(
        label=evil,
        x=Axis(low=0, high=1, label=evil, ticks=(0,), tick_labels=(evil,)),
        y=Axis(low=0, high=1, label=evil),
    )
    chart.line([(0, 0), (1, 1)], evil, tip=evil)
    chart.dot(0, 0, evil, tip=evil)
    chart.bar((0, 1), (0, 1), evil, tip=evil)
    chart.text(0, 0, evil, colour=evil)

    svg = chart.render()

    assert "<script" not in svg
    assert re.search(r"\"'[^ />]", svg) is None
    assert svg.count("&lt;script&gt;") == 12


def test_a_line_of_one_point_draws_nothing():
    chart = Chart(label="x", x=Axis(low=0, high=1), y=Axis(low=0, high=1))
    before = chart.render()

    chart.line([(0.5, 0.5)], "red")

    assert chart.render() == before


def test_colours_are_mixed_and_clamped():
    assert mixed((0, 0, 0), (255, 255, 255), 0) == "#000000"
    assert mixed((0, 0, 0), (255, 255, 255), 7) == "#ffffff"


def test_a_long_text_is_cut_on_one_line():
    assert shortened("one\n two", 20) == "one two"
    assert shortened("abcdefgh", 4) == "abc\u2026"
