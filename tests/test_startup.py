"""The import of TensorFlow leaves out what nobody asked for, and gives it to whoever asks."""

import subprocess
import sys

_PROGRAM = """
import gc, sys
from tfbig.startup import deferred, import_tensorflow
import_tensorflow()
assert gc.isenabled() and not [finder for finder in sys.meta_path if type(finder).__name__ == '_Deferring']
import tfbig.training.fit
print([name for name in ("sklearn", "matplotlib", "scipy.stats", "dp_accounting.pld") if name in sys.modules])
import keras
assert keras.wrappers.SKLearnClassifier and keras.visualization.plot_image_gallery
assert deferred("dp_accounting") is deferred("dp_accounting") is sys.modules["dp_accounting"]
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.mechanism import Mechanism
assert 0 < epsilon(Mechanism(1.0, 1000, 10, "poisson"), 5, delta=1e-5, accountant="rdp") < 10
try:
    deferred("no_such_module")
except ModuleNotFoundError:
    print("not installed")
"""


def test_libraries_for_plots_wrappers_and_privacy_wait_until_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "not installed"]
