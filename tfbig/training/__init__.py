"""The learner, its callbacks and checkpoints, and fit.py, which alone assembles them."""
