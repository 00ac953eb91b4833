"""A trained network as a SavedModel for TF Serving, weights written once, checked before it is in place.

Why `model.export` of Keras 3 writes every weight twice (190 MB for 94 MB): it tracks the
`keras.Variable`s in `variables` and, in `_all_variables`, the `tf.Variable`s that the functions captured.
A Keras variable is a trackable of its own that serialises the tf.Variable inside it, so the checkpoint gets
two entries over one storage. Here the SavedModel's root holds the captured `tf.Variable`s and nothing
else of the network: once each, no optimizer, no learner, and only what a signature needs.

Lookup tables and the assets of hub modules are captured by handle and are not variables; they are found
by walking the network's tracked objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import DataSpec, Split
from tfbig.errors import DataError, GateError
from tfbig.serving import gate
from tfbig.serving.staging import staging, writing

SERVING_DEFAULT = "serving_default"


@dataclass(frozen=True)
class Signature:
    """One served function.

    Args:
        function: The tensors of `inputs`, in order -> output name -> tensor; batch first everywhere.
        inputs: Named specs; the names are the served input names. TF Serving's REST interface decodes
            base64 for string inputs whose name ends in `_bytes`.
        resources: Tables and other tracked objects that `function` uses and the network does not hold.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: tuple[tf.TensorSpec, ...]
    resources: tuple[tf.saved_model.experimental.TrackableResource, ...] = ()


def export(
    network: keras.Model,
    signatures: Mapping[str, Signature],
    directory: Path,
    *,
    samples: Mapping[str, np.ndarray],
    assets: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the next version of `directory`, if a fresh process gets the network's results from it.

    Guarantees: the version appears complete, by one rename, or not at all; see staging.py. Weights are
    written once. The gate (gate.py, parity.py) feeds `samples` to every signature whose inputs they
    cover; serving_default must be one.

    Args:
        network: The trained network, built; its tables and assets are exported with it.
        signatures: Name -> function; one is "serving_default".
        directory: The folder a server watches; versions are its sub-folders 1, 2, ...
        samples: Input name -> (B, ...) real examples, object arrays for bytes; see `served_samples`.
        assets: File name -> contents, for the version's assets/ folder; see `class_assets`.

    Returns:
        The version's folder.

    Raises:
        GateError: The export does not load or gives other results; nothing is left in place.
        EnvironmentFault: The folder cannot be written, or the disk is full; nothing is left in place.
    """
    feeds = _feeds(signatures, samples)
    functions = {name: _traced(signature) for name, signature in signatures.items()}
    expected = {name: _results(signatures[name], functions[name], feed) for name, feed in feeds.items()}
    # Absolute, since the gate's process runs in another folder.
    with staging(directory.absolute()) as place:
        with writing(directory):
            files = _asset_files(place.scratch / "assets", assets or {})
            tf.saved_model.save(_root(network, signatures, functions, files), str(place.folder), functions)
            _check_names(place.folder / "assets", assets or {})
            request = gate.prepare(place.scratch, place.folder, feeds, expected)
        gate.check(request)
        return directory / place.publish().name


def class_assets(spec: DataSpec) -> dict[str, bytes]:
    """The names of the classes as the asset class_names.txt: UTF-8, one a line, in the order of the labels.

    Raises:
        DataError: A name holds a line break.
    """
    for name in spec.class_names:
        if len(name.splitlines()) > 1 or name != name.strip("\r\n"):
            raise DataError(f"A class name must be one line of text, got {name!r}; rename the class.")
    return {"class_names.txt": "".join(f"{name}\n" for name in spec.class_names).encode()}


def served_samples(signature: Signature, split: Split, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Examples of a split in the form a client sends them.

    Args:
        signature: Usually serving_default.
        split: Where it has stored files, a signature with one string input gets those; else its features
            are fed, by name where there are several inputs.
        indices: (B,) which examples.

    Returns:
        Input name -> (B, ...) examples.

    Raises:
        ValueError: The split's features are not the signature's inputs.
    """
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and signature.inputs[0].dtype == tf.string and split.payload is not None:
        return {names[0]: np.array([split.payload(int(i)) for i in indices], dtype=object)}
    rows = [split.fetch(tf.constant(int(i), tf.int64)) for i in indices]
    rows = [row if isinstance(row, dict) else {names[0]: row} for row in rows]
    if set(rows[0]) != set(names):
        raise ValueError(f"The signature takes {', '.join(names)}, but the split has {', '.join(sorted(rows[0]))}.")
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in names}


def _feeds(
    signatures: Mapping[str, Signature], samples: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    if SERVING_DEFAULT not in signatures:
        raise ValueError(f"One signature must be named {SERVING_DEFAULT}, got {', '.join(signatures) or 'none'}.")
    feeds = {}
    for name, signature in signatures.items():
        names = [spec.name for spec in signature.inputs]
        if set(names) <= set(samples):
            feeds[name] = {key: samples[key] for key in names}
    if not all(len(value) for value in samples.values()) or SERVING_DEFAULT not in feeds:
        wanted = ", ".join(str(spec.name) for spec in signatures[SERVING_DEFAULT].inputs)
        raise ValueError(f"The gate needs at least one sample of {wanted}, got {', '.join(samples) or 'none'}.")
    return feeds


def _traced(signature: Signature) -> tf.types.experimental.ConcreteFunction:
    # autograph=False: Keras layers are already written for tracing.
    return tf.function(signature.function, signature.inputs, autograph=False).get_concrete_function()


def _results(
    signature: Signature, function: tf.types.experimental.ConcreteFunction, feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The network's results in memory, on the CPU like the gate's.

    In float32 no graph is involved, so that what a trace froze wrongly shows. With bfloat16 inside, the
    optimiser of a graph rounds at other places than single operations do (0.003 was seen in a
    probability), so there both sides run a graph, and agree.
    """
    def on_cpu(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("/CPU:0"):
            return signature.function(*tensors)

    run = tf.function(on_cpu, autograph=False) if _is_low_precision(function) else on_cpu
    tensors = [tf.constant(feed[str(spec.name)], spec.dtype) for spec in signature.inputs]
    return {name: value.numpy() for name, value in run(*tensors).items()}


def _is_low_precision(function: tf.types.experimental.ConcreteFunction) -> bool:
    dtypes = {tensor.dtype for operation in function.graph.get_operations() for tensor in operation.outputs}
    return not dtypes.isdisjoint({tf.bfloat16, tf.float16})


def _root(
    network: keras.Model,
    signatures: Mapping[str, Signature],
    functions: Mapping[str, tf.types.experimental.ConcreteFunction],
    files: list[Path],
) -> tf.Module:
    root = tf.Module()
    root.assets = [tf.saved_model.Asset(str(file)) for file in files]
    variables = [variable for function in functions.values() for variable in function.variables]
    root.weights = list({id(variable): variable for variable in variables}.values())
    captured = {id(tensor) for function in functions.values() for tensor, _ in function.graph.captures}
    resources = [resource for signature in signatures.values() for resource in signature.resources]
    for tracked in tf.train.TrackableView(network).descendants():
        is_table = isinstance(tracked, tf.saved_model.experimental.TrackableResource)
        # A hub module's other files stay behind: an export of ours may be the backbone of this one.
        if is_table or (isinstance(tracked, tf.saved_model.Asset) and id(tracked.asset_path) in captured):
            resources.append(tracked)
    root.resources = resources
    return root


def _asset_files(folder: Path, assets: Mapping[str, bytes]) -> list[Path]:
    folder.mkdir()
    for name, contents in assets.items():
        (folder / name).write_bytes(contents)
    return [folder / name for name in assets]


def _check_names(folder: Path, assets: Mapping[str, bytes]) -> None:
    """TensorFlow renames one of two assets of the same name, and not always the other one."""
    for name, contents in assets.items():
        if (folder / name).read_bytes() != contents:
            raise GateError(
                f"The export must hold assets/{name} as given, but a table of the network has a file of that name; "
                f"rename the table's file in the hub module and save the module again."
            )
