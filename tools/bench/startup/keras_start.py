"""Plain Keras 3: a folder of pictures, a network of keras.applications, `compile` and `fit`."""

from __future__ import annotations

import first_step
import keras
from keras_turns import AfterStep
from scripts import arguments, versions
from turns import Turns


def main() -> None:
    args = arguments(has_work=True)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy("mixed_bfloat16")
    side = first_step.SIDE
    data = keras.utils.image_dataset_from_directory(
        args.folder, image_size=(side, side), batch_size=first_step.BATCH_SIZE, seed=args.seed
    )
    images = keras.Input((side, side, 3))
    body = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    features = body(keras.layers.Rescaling(1 / 255)(images))
    network = keras.Model(images, keras.layers.Dense(first_step.NUM_CLASSES, dtype="float32")(features))
    network.compile(
        optimizer=keras.optimizers.AdamW(first_step.LEARNING_RATE, weight_decay=first_step.WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    after = AfterStep(Turns(warm_up_steps=1, facts={"versions": versions("keras")}))
    network.fit(data, epochs=first_step.NUM_EPOCHS, callbacks=[after], verbose=0)


if __name__ == "__main__":
    main()
