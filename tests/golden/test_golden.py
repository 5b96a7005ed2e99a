import json
from typing import Any

import pytest

from tests.golden.regenerate import GOLDEN, content, path_of


def approximately(value: Any) -> Any:
    """The value with room for rounding in every float: builds of torch differ in the last bits."""
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_those_of_the_golden_file(name):
    stored = json.loads(path_of(name).read_text())

    produced = json.loads(json.dumps(content(name)))

    assert produced["settings"] == stored["settings"]
    assert produced["value"] == approximately(stored["value"])
