"""The embedded default is what make_demo.py writes, byte for byte."""

import subprocess
import sys

from conftest import ROOT


def test_made_again_it_is_the_same(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "data/make_demo.py"), str(tmp_path)], check=True, capture_output=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 9 + 18 + 5 + 1  # task files, splits, model and tokenizer, planted groups
    for path in made:
        assert (tmp_path / path).read_bytes() == (ROOT / "data" / path).read_bytes(), path
