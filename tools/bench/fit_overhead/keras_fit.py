"""Plain Keras: `compile` and `fit` on the very network, optimizer, memory and images that tfbig trains with."""

from __future__ import annotations

import argparse

import keras
import same
import tensorflow as tf
from keras_turns import AfterStep
from same import arguments
from scripts import versions
from turns import Turns

from tfbig.data.splits import DataSpec
from tfbig.networks.fused import fused
from tfbig.runtime import runtime
from tfbig.training.optimizers import WarmupCosine, make_optimizer, without_decay


def main() -> None:
    args = arguments()
    with runtime(strategy="none", precision="float32", seed=args.seed):
        names = tuple(str(label) for label in range(same.NUM_CLASSES))
        spec = DataSpec(tf.TensorSpec((None, None, None, 3), tf.float32), same.NUM_EXAMPLES, names)
        network = fused(same.network(same.configuration(args), spec))
        rate = WarmupCosine(same.LEARNING_RATE, num_steps=same.NUM_EXAMPLES, warmup_steps=0, falls=False)
        undecayed = without_decay(network.trainable_variables)
        network.compile(
            optimizer=make_optimizer(
                "adamw", learning_rate=rate, weight_decay=same.WEIGHT_DECAY, undecayed=undecayed
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        facts: dict[str, object] = {"versions": versions("keras", "tensorflow", "numpy")}
        after = AfterStep(Turns(warm_up_steps=same.WARM_UP_STEPS, facts=facts))
        network.fit(batches(network, args), callbacks=[after], verbose=0)


def batches(network: keras.Model, args: argparse.Namespace) -> tf.data.Dataset:
    """Shuffled batches of images and labels, as a user of tf.data would make them of rows in memory."""
    gather = same.gather(network, args.seed)
    labels = tf.constant(same.labels())
    order = tf.data.Dataset.range(same.NUM_EXAMPLES).shuffle(same.NUM_IMAGES, seed=args.seed)
    rows = order.batch(args.batch_size, drop_remainder=True)
    found = rows.map(lambda i: (gather(i), tf.gather(labels, i)), num_parallel_calls=tf.data.AUTOTUNE)
    return found.prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    main()
