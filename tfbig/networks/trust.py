"""What a SavedModel could do to this machine, found in its graph before it is loaded.

A SavedModel is a program, not just weights: its graph may read files, write files or call Python.
This is for SavedModels what Keras's `safe_mode` is for `.keras` files. Used by tfbig.networks.hub.

Guarantees: an operation that can run, and is on the list below, is named. Not covered: memory or time
that a graph takes, mistakes in TensorFlow's own kernels, and operations added by other packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from tfbig.errors import EnvironmentFault

_TABLE_FROM_FILE = re.compile(r"InitializeTableFromTextFile(V2)?")
_UNSAFE = re.compile(
    r"(Eager)?PyFunc(Stateless)?"
    r"|ReadFile|WriteFile|MatchingFiles|ImmutableConst|LoadAndRemapMatrix|GenerateVocabRemapping"
    r"|FixedUnigramCandidateSampler|FileSystemSetConfiguration|RecordInput|Rpc\w+"
    r"|Save(V2|Slices)?|Restore(V2|Slice)?|MergeV2Checkpoints|DistributedSave"
    r"|\w*Reader(V2)?|Reader(Read|RestoreState)\w*"
    r"|(Experimental)?(\w*Record|TextLine|CSV|Sql|LMDB|MatchingFiles|Cache|Save|Load|Snapshot|SnapshotChunk"
    r"|ListSnapshotChunks|DataService|Register)Dataset(V\d)?|(Experimental)?DatasetToTFRecord"
    r"|CreateSummary(File|Db)Writer|Write\w*Summary|Debug(Identity|NanCount|NumericSummary)(V\d)?"
)


def unsafe_operations(path: str | Path) -> list[str]:
    """The operations of a SavedModel that read or write files or run Python.

    Restoring the module's own checkpoint, and filling a table from one of its own assets, do not count.

    Args:
        path: Folder with a saved_model.pb.

    Returns:
        Operation types, sorted; empty for a module that only computes.

    Raises:
        EnvironmentFault: The file is missing or is not a SavedModel.
    """
    file = Path(path) / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise EnvironmentFault(f"{file} cannot be read as a SavedModel ({error}); fetch it again.") from error
    return sorted({op for graph in proto.meta_graphs for op in _unsafe_in(graph)})


def _unsafe_in(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    of_saver = _saver_nodes(graph)
    own_assets = {asset.tensor_info.name.partition(":")[0] for asset in graph.asset_file_def}
    live = [node for node in graph.graph_def.node if node.name not in of_saver]
    for node in live:
        from_asset = _TABLE_FROM_FILE.fullmatch(node.op) and node.input[1].partition(":")[0] in own_assets
        if not from_asset and _is_unsafe(node):
            yield node.op
    roots = [name for node in live for name in _called(node, library)]
    roots += list(graph.object_graph_def.concrete_functions)
    roots += [gradient.gradient_func for gradient in graph.graph_def.library.gradient]
    roots += [gradient.gradient_func for gradient in graph.graph_def.library.registered_gradients]
    asset_arguments = _asset_arguments(graph, library)
    for name in _reachable(roots, library):
        for node in library[name].node_def:
            if _TABLE_FROM_FILE.fullmatch(node.op) and node.input[1] in asset_arguments.get(name, ()):
                continue
            if _is_unsafe(node):
                yield node.op


def _is_unsafe(node: node_def_pb2.NodeDef) -> bool:
    if node.op == "PrintV2":
        return node.attr["output_stream"].s.startswith(b"file:")
    return bool(_UNSAFE.fullmatch(node.op) or _TABLE_FROM_FILE.fullmatch(node.op))


def _called(node: node_def_pb2.NodeDef, library: dict[str, function_pb2.FunctionDef]) -> Iterator[str]:
    """Names of the functions that a node may call."""
    if node.op in library:
        yield node.op
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            if function.name in library:
                yield function.name


def _reachable(roots: Iterable[str], library: dict[str, function_pb2.FunctionDef]) -> set[str]:
    seen: set[str] = set()
    waiting = [name for name in roots if name in library]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [callee for node in library[name].node_def for callee in _called(node, library)]
    return seen


def _saver_nodes(graph: meta_graph_pb2.MetaGraphDef) -> set[str]:
    """Nodes that only save or restore the checkpoint: what the saver needs and no signature does."""
    nodes = {node.name: node for node in graph.graph_def.node}
    saver = (graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name)
    signatures = (info.name for signature in graph.signature_def.values() for info in signature.outputs.values())
    return _ancestors(nodes, saver) - _ancestors(nodes, signatures)


def _ancestors(nodes: dict[str, graph_pb2.NodeDef], ends: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(ends)
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in seen:
            seen.add(name)
            waiting += nodes[name].input
    return seen


def _asset_arguments(
    graph: meta_graph_pb2.MetaGraphDef, library: dict[str, function_pb2.FunctionDef]
) -> dict[str, set[str]]:
    """For each function of the object graph, its arguments that are bound to the module's own assets.

    Only such an argument is surely an asset: a constant in the graph may name any file.
    """
    objects = graph.object_graph_def
    arguments: dict[str, set[str]] = {}
    for name, function in objects.concrete_functions.items():
        if name in library and function.bound_inputs:
            bound = library[name].signature.input_arg[-len(function.bound_inputs) :]
            arguments[name] = {
                argument.name
                for argument, node_id in zip(bound, function.bound_inputs, strict=True)
                if objects.nodes[node_id].WhichOneof("kind") == "asset"
            }
    return arguments
