"""The rows of the bench of training steps: two networks, trained whole on the same made-up work.

Standard library only: it is imported in the environment of every tool.

- `resnet50`: He et al. 2016, arXiv 1512.03385, with the stride in the first convolution of a stage's first block.
- `vit_tiny`: width 192, 12 pre-norm blocks, 3 heads, gelu MLPs of 4 times the width, patches of 16, class token,
  learned positions; Touvron et al. 2021, arXiv 2012.12877.

All: 224 pixels, batches of 16 (on a processor), 10 classes, random weights, AdamW with weight decay, no clipping of
gradients, no dropout, bfloat16 with variables in float32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

BATCH_SIZE = int(os.environ.get("TFBIG_BENCH_BATCH_SIZE", "16"))
"""Of the table; `tools/bench/gpu.py` asks for larger ones, as GPUs need them."""
SIDE = 224
NUM_CLASSES = 10
NUM_IMAGES = 64
NUM_STEPS = 100_000
"""More than are ever run: no tool comes to the end of an epoch or of a schedule."""
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.03
WARM_UP_STEPS = 3
ROOF_SIDE = int(os.environ.get("TFBIG_BENCH_ROOF_SIDE", "2048"))

WIDTH = 192
DEPTH = 12
HEADS = 3
PATCH = 16
LAYER_NORM_EPSILON = 1e-12


@dataclass(frozen=True)
class Row:
    """One network.

    Args:
        name: As in `--rows`.
        num_parameters: That a step changes, without biases of convolutions in front of a norm.
        num_idle_biases: Those biases, which Keras's ResNet has and others do without.
    """

    name: str
    num_parameters: int
    num_idle_biases: int = 0

    def check(self, num_parameters: int) -> None:
        """Refuses a network with another number of trained parameters.

        Raises:
            ValueError: It is not the row's architecture.
        """
        if num_parameters not in (self.num_parameters, self.num_parameters + self.num_idle_biases):
            raise ValueError(
                f"the row {self.name} trains {self.num_parameters:,} parameters (and {self.num_idle_biases:,} biases "
                f"that change nothing), this network {num_parameters:,}; build the architecture that work.py describes."
            )


ROWS = {
    "resnet50": Row("resnet50", 23_528_522, 26_560),
    "vit_tiny": Row("vit_tiny", 5_526_346),
}
