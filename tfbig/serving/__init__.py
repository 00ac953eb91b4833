"""From a trained network to a SavedModel that TF Serving loads, checked in a fresh process."""
