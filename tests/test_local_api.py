"""What Prefect's import leaves as it was in the process of a flow."""

import subprocess
import sys
from pathlib import Path


def test_a_standard_error_that_is_redirected_for_the_flow_stays_open(tmp_path: Path) -> None:
    code = (
        "import contextlib, io, sys\n"
        "from pathlib import Path\n"
        "from flows.local_api import prepare_api\n"
        "from nst_engine.startup import load_tensorflow\n"
        "callers = io.StringIO()\n"
        "with contextlib.redirect_stderr(callers):\n"
        "    load_tensorflow()\n"
        "    with contextlib.redirect_stderr(io.StringIO()):\n"
        "        prepare_api(Path(sys.argv[1]))\n"
        "        from prefect import flow\n"
        "    sys.stderr.write('still open')\n"
        "from absl import logging\n"
        "print(callers.getvalue(), logging.get_absl_handler().python_handler.stream is callers)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("still open True\n", "")
