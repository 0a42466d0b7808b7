"""TensorFlow's import as the engine does it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="nothing before"),
        pytest.param("import matplotlib.figure\n", id="matplotlib before"),
    ],
)
def test_matplotlib_is_only_there_for_those_who_ask_for_it(before: str) -> None:
    code = (
        f"import sys\n{before}"
        "had = 'matplotlib' in sys.modules\n"
        "from nst_engine.startup import load_tensorflow\n"
        "load_tensorflow()\n"
        "assert 'tensorflow' in sys.modules\n"
        "assert ('matplotlib' in sys.modules) == had\n"
        "from matplotlib.figure import Figure\n"
        "print(Figure.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("Figure\n", "")
