"""tfbig: from a pretrained network on a hub to a served model, on Keras 3 and TensorFlow."""

__version__ = "0.1.0"
