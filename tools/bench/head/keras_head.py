"""Plain Keras 3: a frozen network of keras.applications under a dense layer, `compile` and `fit`."""

from __future__ import annotations

import time

import frozen
import keras
from scripts import arguments


class AtEpochs(keras.callbacks.Callback):
    """CPU seconds of the process at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.times.append(time.process_time())


def main() -> None:
    args = arguments(has_work=True)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy("mixed_bfloat16")
    began = time.process_time()
    side = frozen.SIDE
    data = keras.utils.image_dataset_from_directory(
        args.folder / "train", image_size=(side, side), batch_size=frozen.BATCH_SIZE, seed=args.seed, verbose=False
    )
    images = keras.Input((side, side, 3))
    body = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    body.trainable = False
    features = body(keras.layers.Rescaling(1 / 255)(images), training=False)
    network = keras.Model(images, keras.layers.Dense(frozen.NUM_CLASSES, dtype="float32")(features))
    network.compile(
        optimizer=keras.optimizers.AdamW(frozen.LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    after = AtEpochs()
    network.fit(data, epochs=frozen.NUM_MEASURED, callbacks=[after], verbose=0)
    first, second = after.times[0] - began, after.times[1] - after.times[0]
    frozen.answer(("tensorflow", "keras"), first_s=first, next_s=second)


if __name__ == "__main__":
    main()
