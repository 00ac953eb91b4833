"""Plain Keras: `compile` and `fit` on the very network that tfbig trains, with its faster forms of layers."""

from __future__ import annotations

import keras
import same
import tensorflow as tf
from keras_turns import AfterStep
from same import arguments
from scripts import versions
from turns import Turns

from tfbig.data.splits import DataSpec
from tfbig.networks.fused import fused
from tfbig.training.optimizers import without_decay


def main() -> None:
    args = arguments()
    keras.utils.set_random_seed(args.seed)
    names = tuple(str(label) for label in range(same.NUM_CLASSES))
    spec = DataSpec(tf.TensorSpec((None, None, None, 3), tf.float32), same.NUM_EXAMPLES, names)
    network = fused(same.network(same.configuration(args), spec))
    x, y = same.images(network, args.seed)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).repeat().batch(args.batch_size)
    optimizer = keras.optimizers.AdamW(same.LEARNING_RATE, weight_decay=same.WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_list=without_decay(network.trainable_variables))
    network.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    facts: dict[str, object] = {"versions": versions("keras", "tensorflow", "numpy")}
    after = AfterStep(Turns(warm_up_steps=same.WARM_UP_STEPS, facts=facts))
    steps = same.NUM_EXAMPLES // args.batch_size
    network.fit(data.prefetch(tf.data.AUTOTUNE), steps_per_epoch=steps, callbacks=[after], verbose=0)


if __name__ == "__main__":
    main()
