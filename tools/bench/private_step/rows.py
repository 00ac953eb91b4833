"""The rows of the bench: which network, on which batch, trained in which variables, by which mechanism.

Standard library only: it is imported in the environment of every tool. Each tool builds the networks
described here in its own framework, and refuses to be measured with another number of trained parameters.

- `cnn`: three times Conv 3x3 (32, 64, 128 channels, same), GroupNorm of 8 groups, relu, max pooling 2x2;
  then Dense 128 with relu, Dense 10. Trained whole.
- `vit`: width 192, 12 blocks, 3 heads, patches of 8, learned positions, pre-norm blocks with a gelu MLP of
  4 times the width, mean pooling, Dense 10. Trained whole.
- `head`: the `vit`, frozen but for the last Dense.
- `lora`: the `vit` with updates of rank 8 on every kernel of the blocks, one update a head for queries, keys
  and values, as Keras's enable_lora makes them; these and the last Dense are trained, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 1e-3
NUM_CLASSES = 10

# The networks.
CHANNELS = (32, 64, 128)
GROUPS = 8
GROUP_NORM_EPSILON = 1e-5
WIDTH = 192
DEPTH = 12
HEADS = 3
PATCH = 8
LAYER_NORM_EPSILON = 1e-6
LORA_RANK = 8


@dataclass(frozen=True)
class Row:
    """One network and its batch.

    Args:
        name: As in `--rows`.
        batch_size: Examples a step.
        side: Height and width of the images, in pixels.
        num_trained: Parameters that a step changes.
    """

    name: str
    batch_size: int
    side: int
    num_trained: int

    @property
    def num_patches(self) -> int:
        """Tokens of the vit."""
        return (self.side // PATCH) ** 2

    def check(self, num_trained: int) -> None:
        """Refuses a network with another number of trained parameters.

        Raises:
            ValueError: It is not the row's architecture.
        """
        if num_trained != self.num_trained:
            raise ValueError(
                f"the row {self.name} trains {self.num_trained:,} parameters, this network {num_trained:,}; build the "
                "architecture that rows.py describes."
            )


ROWS = {
    "cnn": Row("cnn", 64, 32, 357_258),
    "vit": Row("vit", 32, 64, 5_390_026),
    "head": Row("head", 32, 64, 1_930),
    "lora": Row("lora", 32, 64, 407_434),
}
