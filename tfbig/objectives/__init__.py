"""What a network is trained for: one loss per example, and the metrics beside it."""
