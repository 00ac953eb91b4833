"""The import of TensorFlow leaves out what nobody asked for, and gives it to whoever asks; frames have room."""

import subprocess
import sys

_PROGRAM = """
import gc, sys, typing
from tfbig.startup import deferred, import_tensorflow
import_tensorflow()
assert gc.isenabled() and not [finder for finder in sys.meta_path if type(finder).__name__ == '_Deferring']
assert not hasattr(typing, "compile") and eval(typing.ForwardRef("int | None").__forward_code__) == int | None
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


_DEEP_CALLS = """
import resource
from tfbig.startup import roomy

def leaf(a=1, b=2, c=3, d=4, e=5, f=6, g=7):
    x = y = z = 0

def faults_at(depth):
    if depth:
        return faults_at(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2000):
        leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def most():
    return max(faults_at(depth) for depth in range(400))

print(roomy(most)())
"""


def test_no_call_takes_memory_from_the_system_however_deep_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", _DEEP_CALLS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200
