from pathlib import Path

import pytest

from ehr.whole_files import in_home


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ada")

    assert in_home("~/tjh") == Path("/home/ada/tjh")


def test_a_user_who_is_not_there_has_no_home():
    assert in_home("~nobody-of-that-name/tjh") == Path("~nobody-of-that-name/tjh")


def test_other_paths_stay():
    assert in_home("a/~/b") == Path("a/~/b")
