"""TensorFlow's import with the settings that suit it here and without its start-up messages, which it prints before
anything can turn them off."""

from __future__ import annotations

import os
import sys
import tempfile


def load_tensorflow() -> None:
    """Import TensorFlow for the modules that use it; what it prints meanwhile is shown only if that fails.

    TF_CPP_MIN_LOG_LEVEL, where it is set, decides about the messages from there on.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # One operation after another, each on all cores: side by side they only get in each other's way.
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    with tempfile.TemporaryFile() as messages:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            messages.seek(0)
            os.write(kept, messages.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
