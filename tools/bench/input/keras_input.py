"""Keras 3: `image_dataset_from_directory` and augmentation layers in `map`, as in Keras's guides.

Keras has no random resized crop. `crop` loads at 256 pixels and cuts 224 out of them; `zoom` loads at 224 and zooms in
by up to 72 per cent, which is nearer to what the others do.
"""

from __future__ import annotations

import keras
import read
import tensorflow as tf
from keras import layers
from scripts import arguments


def main() -> None:
    args = arguments("--by")
    keras.utils.set_random_seed(args.seed)
    side = {"crop": 256, "zoom": read.SIDE}[args.by]
    change = {"crop": layers.RandomCrop(read.SIDE, read.SIDE), "zoom": layers.RandomZoom((-0.72, 0.0))}[args.by]
    change = keras.Sequential([change, layers.RandomFlip("horizontal"), layers.Rescaling(1 / 255)])
    data = keras.utils.image_dataset_from_directory(
        args.folder, image_size=(side, side), batch_size=read.BATCH_SIZE, seed=args.seed, verbose=False
    )
    changed = data.map(lambda x, y: (change(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    turns = read.turns("keras", "tensorflow")
    for images, _ in changed.repeat().prefetch(tf.data.AUTOTUNE):
        if len(images) < read.BATCH_SIZE:
            continue  # the end of an epoch
        if images.shape != (read.BATCH_SIZE, read.SIDE, read.SIDE, 3):
            raise ValueError(f"got a batch of {images.shape}")
        turns.step_done()


if __name__ == "__main__":
    main()
