"""A TF Hub module, any SavedModel that maps a tensor to tensors, as a Keras 3 layer.

`hub.KerasLayer` is refused by Keras 3 models. `HubLayer` loads the SavedModel and adopts each of its
`tf.Variable`s as a `keras.Variable` over the same storage, so that freezing, saving, exporting and
distribution work as for any other layer. Below tfbig.networks.backbones.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import keras
import tensorflow as tf

# Whether a .keras file is being read with safe_mode has no public counterpart.
from keras.src.saving.serialization_lib import in_safe_mode

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.networks.handles import resolve
from tfbig.networks.trust import unsafe_operations

__all__ = ["HubLayer", "resolve", "unsafe_operations"]

_logger = logging.getLogger(__name__)

InputSpec: TypeAlias = tf.TensorSpec | dict[str, tf.TensorSpec]
ConcreteFunction: TypeAlias = tf.types.experimental.ConcreteFunction

_FALLBACK_SIGNATURES = ("serve", "default", "serving_default")


@keras.saving.register_keras_serializable("tfbig")
class HubLayer(keras.layers.Layer):
    """A loaded SavedModel: one tensor (B, ...) -> one tensor.

    While the layer is trainable the module's regularisation losses are added, and where it is also called
    with training=True, and the module takes a `training` argument, its moving averages are updated.

    Args:
        path: Folder of the SavedModel, as `resolve` returns it. A `.keras` file holds the weights and
            this path; the graph stays in the folder.
        trainable: Whether the module's trainable variables are trained.
        arguments: Further keyword arguments of the module; each must match a traced value.
        signature: Call this signature. By default the module itself is called or, if it is not callable,
            as Keras 3's exports are not, its signature `serve`.
        output: Key of the output to return where the module gives a dict.
        trust: Load the module even though `unsafe_operations` finds something in its graph.
        **kwargs: `name` and `dtype`, as in keras.layers.Layer; variables keep the module's own types.

    Raises:
        EnvironmentFault: The folder is missing, is no SavedModel, or does what needs trust.
        UsageError: No such signature or output, or a choice between several is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        trainable: bool = False,
        arguments: Mapping[str, object] | None = None,
        signature: str | None = None,
        output: str | None = None,
        trust: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(trainable=trainable, autocast=False, **{"dtype": "float32", **kwargs})
        self.module_path = str(path)
        self.arguments = dict(arguments or {})
        self.signature = signature
        self.output_key = output
        self.trust = trust
        # The root is kept: without it TensorFlow deletes the variables, and the assets go with it.
        self._module = _load(self.module_path, trust=trust)
        self._signature = _choose_signature(self._module, signature, self.module_path)
        traced = _traced(self._module, self._signature, self.module_path)
        self._takes_training = self._signature is None and "training" in _argument_names(self._module)
        self._output = _choose_output(traced[0].structured_outputs, output, self.module_path)
        self.module_input = _input_spec(traced[0], self._signature)
        self._adopted = _adopt(_variables(self._module, traced), self.module_path)
        if trainable and self._adopted and not self.trainable_variables:
            _logger.warning("%s was saved with all its variables frozen: none of them will train.", self.module_path)
        self.built = True

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels that the module takes; None where any will do."""
        spec = self.module_input
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank != 4 or spec.shape[3] not in (3, None):
            raise EnvironmentFault(f"{self.module_path} must take images (B, H, W, 3), it takes {spec}.")
        height, width = spec.shape[1:3]
        if height != width:
            raise EnvironmentFault(f"{self.module_path} must take square images, it takes {height} x {width} pixels.")
        return height

    @property
    def penalties(self) -> Sequence[Callable[[], tf.Tensor]]:
        """The module's regularisation losses, functions of its weights alone; none where it is frozen."""
        return tuple(getattr(self._module, "regularization_losses", None) or ()) if self.trainable else ()

    @property
    def takes_integers(self) -> bool:
        """Whether the module takes integers, so that images can only mean grey levels 0 to 255."""
        return isinstance(self.module_input, tf.TensorSpec) and self.module_input.dtype.is_integer

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The module's output for a batch of inputs."""
        arguments = dict(self.arguments)
        if self._takes_training:
            arguments["training"] = bool(training) and self.trainable
        spec = self.module_input
        if isinstance(spec, tf.TensorSpec) and spec.dtype != tf.string:
            inputs = tf.cast(inputs, spec.dtype)
        if self._signature is None:
            outputs = self._module(inputs, **arguments)
        else:
            named = {spec.name: inputs} if isinstance(spec, tf.TensorSpec) else inputs
            outputs = self._module.signatures[self._signature](**named, **arguments)
        for penalty in self.penalties:
            self.add_loss(penalty())
        return outputs if self._output is None else outputs[self._output]

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        own = {
            "path": self.module_path,
            "arguments": dict(self.arguments),
            "signature": self.signature,
            "output": self.output_key,
            "trust": self.trust,
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, object]) -> HubLayer:
        """A layer from its config; a `.keras` file cannot grant trust to its own module."""
        if config.get("trust") and in_safe_mode():
            raise EnvironmentFault(
                f"This .keras file asks to trust the module {config['path']} with files or Python; load it with "
                "safe_mode=False if you trust both."
            )
        return cls(**config)  # type: ignore[arg-type]


def _load(path: str, *, trust: bool) -> tf.Module:
    if not (Path(path) / "saved_model.pb").is_file():
        raise EnvironmentFault(f"There is no SavedModel at {path}; put the module there.")
    unsafe = [] if trust else unsafe_operations(path)
    if unsafe:
        raise EnvironmentFault(
            f"{path} reads or writes files or runs Python ({', '.join(unsafe)}); pass --model.trust if you trust "
            "its author."
        )
    try:
        with tf.variable_creator_scope(_read_alone):
            return tf.saved_model.load(path)
    except (OSError, ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise EnvironmentFault(f"The SavedModel at {path} cannot be loaded ({error}); fetch it again.") from error


def _read_alone(create: Callable[..., tf.Variable], **settings: object) -> tf.Variable:
    """A variable that each worker reads by itself, as Keras 3's are.

    Averages are saved as the kind that all replicas sum up when one reads it: a chief that writes them down would wait
    for workers that do not.
    """
    if settings.get("synchronization") == tf.VariableSynchronization.ON_READ:
        settings["synchronization"] = tf.VariableSynchronization.AUTO
    return create(**settings)


def _choose_signature(module: tf.Module, wanted: str | None, path: str) -> str | None:
    """The signature to call; None to call the module itself."""
    signatures = list(getattr(module, "signatures", None) or ())
    if wanted is not None:
        if wanted not in signatures:
            raise UsageError(
                f"model.signature must be one of {', '.join(signatures) or '(the module has none)'} for {path}, "
                f"got {wanted!r}."
            )
        return wanted
    if callable(module):
        return None
    for name in _FALLBACK_SIGNATURES:
        if name in signatures:
            _logger.info("%s is not callable; using its signature %s.", path, name)
            return name
    raise UsageError(
        f"{path} is not callable; choose one of its signatures with --model.signature: "
        f"{', '.join(signatures) or '(it has none)'}."
    )


def _traced(module: tf.Module, signature: str | None, path: str) -> Sequence[ConcreteFunction]:
    """The concrete functions behind a call, at least one."""
    functions = [module.signatures[signature]] if signature else module.__call__.concrete_functions
    if not functions:
        raise EnvironmentFault(f"{path} has no traced function; its author must export it with an input signature.")
    return functions


def _argument_names(module: tf.Module) -> Sequence[str]:
    spec = module.__call__.function_spec.fullargspec
    return [*spec.args, *spec.kwonlyargs]


def _input_spec(function: ConcreteFunction, signature: str | None) -> InputSpec:
    """What the module takes: a spec, or a structure of them where it takes several tensors."""
    positional, named = function.structured_input_signature
    if signature is None:
        return positional[0] if positional else named
    if len(named) > 1:
        return dict(named)
    ((name, spec),) = named.items()
    return tf.TensorSpec(spec.shape, spec.dtype, name)


def _choose_output(outputs: object, wanted: str | None, path: str) -> str | None:
    """The key of the output to return; None where the module gives one tensor."""
    if not isinstance(outputs, Mapping):
        if wanted is not None:
            raise UsageError(f"model.output must not be given for {path}: it gives one tensor, not a dict.")
        if not isinstance(outputs, tf.TensorSpec | tf.Tensor):
            raise EnvironmentFault(f"{path} must give a tensor or a dict of tensors, it gives {outputs}.")
        return None
    # Sorted, because a loaded module lists them in no fixed order.
    keys = ", ".join(sorted(outputs))
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(f"model.output must be one of {keys} for {path}, got {wanted!r}.")
        return wanted
    if len(outputs) == 1:
        return next(iter(outputs))
    # The name that TF Hub's common signatures reserve for the main output.
    if "default" in outputs:
        return "default"
    raise UsageError(f"{path} gives several outputs; choose one with --model.output: {keys}.")


def _variables(module: tf.Module, functions: Sequence[ConcreteFunction]) -> list[tuple[tf.Variable, bool]]:
    """The module's variables, each once, with whether its author left it trainable; those first.

    A plain tf.Module lists none after loading, so they are collected from its functions.
    """
    listed = list(getattr(module, "variables", None) or ())
    if not listed:
        listed = [variable for function in functions for variable in function.variables]
    trainable = getattr(module, "trainable_variables", None)
    if trainable is None:
        trainable = [variable for variable in listed if variable.trainable]
    trained = {id(variable) for variable in trainable}
    unique = {id(variable): (variable, id(variable) in trained) for variable in listed}
    return sorted(unique.values(), key=lambda pair: not pair[1])


def _adopt(variables: Sequence[tuple[tf.Variable, bool]], path: str) -> list[keras.Variable]:
    """Keras variables over the storage of the module's own."""
    adopted: list[keras.Variable] = []
    names: set[str] = set()
    for variable, trainable in variables:
        stem = variable.name.partition(":")[0].replace("/", "_")
        name = next(n for n in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1))) if n not in names)
        names.add(name)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        keras_variable = keras.Variable(variable, dtype=dtype, trainable=trainable, autocast=False, name=name)
        if keras_variable.value is not variable:
            # Keras copies on a mismatch without a word; training the copy would change nothing.
            raise EnvironmentFault(f"Variable {variable.name} of {path} could not be shared with Keras 3.")
        adopted.append(keras_variable)
    return adopted
