"""The code in the README runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_holds_code():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number):
    # Later blocks stand on the imports of earlier ones.
    code = "\n".join([line for b in BLOCKS[:number] for line in b.splitlines() if "import" in line])
    exec(code + "\n" + BLOCKS[number], {})
