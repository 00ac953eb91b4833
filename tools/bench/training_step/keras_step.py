"""Plain Keras 3: `compile` and `fit` in tfbig's own environment, on the same network, with nothing of tfbig."""

from __future__ import annotations

import argparse

import keras
import numpy as np
import tensorflow as tf
import work
from keras_turns import AfterStep
from networks import num_trained, plain
from scripts import versions
from turns import Turns
from work import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=tuple(ROWS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jit", choices=("auto", "off"), default="auto", help="auto, as Keras has it, is XLA")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = plain(ROWS[args.row])
    ROWS[args.row].check(num_trained(network))
    rng = np.random.default_rng(args.seed)
    x = rng.random((work.NUM_IMAGES, work.SIDE, work.SIDE, 3), np.float32)
    y = rng.integers(work.NUM_CLASSES, size=work.NUM_IMAGES)
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(work.BATCH_SIZE, drop_remainder=True)
    schedule = keras.optimizers.schedules.CosineDecay(work.LEARNING_RATE, work.NUM_STEPS)
    network.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=work.WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile="auto" if args.jit == "auto" else False,
    )
    after = AfterStep(Turns(warm_up_steps=work.WARM_UP_STEPS, facts={"versions": versions("keras", "tensorflow")}))
    network.fit(data.prefetch(tf.data.AUTOTUNE), steps_per_epoch=work.NUM_STEPS, callbacks=[after], verbose=0)


if __name__ == "__main__":
    main()
