"""The import of TensorFlow leaves out what nobody asked for, and gives it to whoever asks; frames have room."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import gc, sys, typing
from tfbig.startup import import_tensorflow
from tfbig.stand_ins import StandIn, stand_in
import_tensorflow()
assert gc.isenabled() and not [finder for finder in sys.meta_path if type(finder).__module__.startswith("tfbig")]
assert not hasattr(typing, "compile") and eval(typing.ForwardRef("int | None").__forward_code__) == int | None
import tfbig.training.fit
print([name for name in (
    "sklearn", "matplotlib", "scipy", "dp_accounting", "h5py", "psutil", "requests", "tensorflow.lite.python.lite",
    "tensorflow.python.keras.engine.training_v1", "tensorflow._api.v2.compat.v1", "tensorflow._api.v2.compat.v2",
) if name in sys.modules])
assert not [name for name, module in sys.modules.items() if isinstance(module, StandIn)]
import keras
import tensorflow as tf
assert keras.wrappers.SKLearnClassifier and keras.visualization.plot_image_gallery
network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
for path in (sys.argv[1] + "/a.h5", sys.argv[1] + "/a.keras"):
    network.save(path)
    assert keras.saving.load_model(path).count_params() == 3
assert tf.lite.Interpreter and tf.compat.v1.lite.Interpreter and tf.compat.v2.lite.Interpreter
assert tf.compat.v1.Session and tf.compat.v2.Variable is tf.Variable and "placeholder" in dir(tf.compat.v1)
import tensorflow.compat.v1 as tf1
from tensorflow.compat.v2 import zeros
assert tf1.Session is tf.compat.v1.Session and zeros is tf.zeros
from tensorflow.python.keras.engine import training, training_v1
assert issubclass(training_v1.Model, training.Model)
import h5py, tensorflow.lite
assert type(h5py) is type(sys)
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.mechanism import Mechanism
assert 0 < epsilon(Mechanism(1.0, 1000, 10, "poisson"), 5, delta=1e-5, accountant="rdp") < 10
"""


def test_libraries_that_few_runs_reach_wait_until_they_are_used(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[]"


def _linked(program: str) -> str:
    """What the dynamic linker tells of a process."""
    told = {**os.environ, "LD_DEBUG": "statistics,scopes"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=told)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr + done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's linker")
def test_functions_of_tensorflow_that_nobody_calls_are_not_looked_up() -> None:
    late = _linked("from tfbig.startup import import_tensorflow; import_tensorflow(show_log=True)")
    at_once = _linked("import tensorflow")
    looked_up = [int(re.findall(r"final number of relocations: (\d+)", told)[-1]) for told in (late, at_once)]
    assert looked_up[0] < 0.8 * looked_up[1]
    # A name that several of the libraries have is that of the first of them: the same one whenever it is looked up.
    assert _orders(late) == _orders(at_once) and len(_orders(late)) == 1


def _orders(told: str) -> set[tuple[str, ...]]:
    """In which orders TensorFlow's libraries are searched for a name."""
    scopes = [[path.rpartition("/")[2] for path in line.split()] for line in re.findall(r"scope \d+: (.*)", told)]
    ours = [[name for name in scope if name.startswith(("libtensorflow", "lib_pywrap"))] for scope in scopes]
    return {tuple(names) for names in ours if "libtensorflow_cc.so.2" in names}


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
