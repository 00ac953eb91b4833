"""Judging a network on data it never saw: metrics, predictions, the report and the model card."""
