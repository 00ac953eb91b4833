"""The import of TensorFlow without the lines that its native libraries print before anyone can stop them.

TF_CPP_MIN_LOG_LEVEL does not reach them: they are written to file descriptor 2 before the logging is set
up. Imports nothing heavy itself.
"""

from __future__ import annotations

import os
import sys
import tempfile


def import_tensorflow(*, show_log: bool = False) -> None:
    """Import TensorFlow and find its devices, keeping what the native libraries print off stderr.

    Args:
        show_log: Let everything through. It is shown anyway where the import fails.

    Raises:
        ImportError: TensorFlow is not installed, or a library of it is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if show_log else "2")
    if show_log:
        _find_devices()
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            _find_devices()
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _find_devices() -> None:
    import tensorflow as tf

    # The search for a GPU has lines of its own, at the first use of a device.
    tf.config.list_physical_devices()
