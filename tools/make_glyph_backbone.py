#!/usr/bin/env python3
"""Pretrains the bundled backbone `glyphs` on characters drawn from matplotlib's own fonts.

    python tools/make_glyph_backbone.py saved_models/backbones/glyphs/1

No picture is read from anywhere: every letter, digit and sign that the DejaVu, STIX and Computer Modern
fonts can draw is rendered, bent, re-inked with another pen and scanned at 8x8 to 16x16 pixels, anew for
each step (drawn_glyphs.py), and `scratch:convnet` learns to name it. What it learns is what handwriting
shares with print. The result is a TF2 SavedModel in TF Hub's image feature vector form: images
(B, 16, 16, 3), float32 in [0, 1] -> features (B, 192).

Letters in shapes: B images, S pixels a side, D features.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from drawn_glyphs import IMAGE_SIZE, Glyphs, batches, bundled_fonts, render

from tfbig.networks import scratch

logger = logging.getLogger("make_glyph_backbone")

WARMUP_STEPS = 200


def main() -> None:
    """Render, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the SavedModel is written, .../NAME/VERSION")
    parser.add_argument("--steps", type=int, default=900, help="training steps (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="characters a step (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of drawing and training (default %(default)s)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.monotonic()
    glyphs = render(bundled_fonts())
    logger.info("%d glyphs of %d classes rendered in %.0f s",
                len(glyphs.labels), len(glyphs.classes), time.monotonic() - started)
    keras.utils.set_random_seed(args.seed)
    network = pretrain(glyphs, steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    export(network, args.folder)
    logger.info("exported to %s after %.1f minutes", args.folder, (time.monotonic() - started) / 60)


def pretrain(glyphs: Glyphs, *, steps: int, batch_size: int, seed: int) -> keras.Model:
    """The backbone, trained to name characters; the naming layer is thrown away."""
    backbone = scratch.build("convnet", IMAGE_SIZE)
    num_classes = len(glyphs.classes)
    classifier = keras.Sequential([backbone, keras.layers.Dropout(0.1), keras.layers.Dense(num_classes)])
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - WARMUP_STEPS), warmup_target=3e-3, warmup_steps=WARMUP_STEPS
    )
    classifier.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.02, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    size = (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)
    data = tf.data.Dataset.from_generator(
        lambda: batches(glyphs, batch_size, seed),
        output_signature=(tf.TensorSpec(size, tf.float32), tf.TensorSpec((batch_size,), tf.int32)),
    ).prefetch(8)
    per_report = max(1, steps // 20)
    classifier.fit(data, steps_per_epoch=per_report, epochs=max(1, steps // per_report), shuffle=False, verbose=2)
    return backbone


def export(network: keras.Model, folder: Path) -> None:
    """Write the network as a TF2 SavedModel in TF Hub's image feature vector form.

    Args:
        network: Images (B, S, S, 3) -> features (B, D).
        folder: .../NAME/VERSION; what was there is replaced.
    """
    spec = tf.TensorSpec((None, *network.input_shape[1:]), tf.float32, name="images")

    @tf.function
    def features(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return network(images, training=training)

    for training in (False, True):
        features.get_concrete_function(spec, training=training)
    # Not keras.Model.export: that gives "serve" signatures, not the callable and the lists that hub users expect.
    module = tf.train.Checkpoint()
    module.variables = [v.value for v in network.variables]
    module.trainable_variables = [v.value for v in network.trainable_variables]
    module.regularization_losses = []
    module.__call__ = features
    tf.saved_model.save(module, str(folder))


if __name__ == "__main__":
    main()
