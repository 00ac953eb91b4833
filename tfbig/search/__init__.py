"""Hyperparameter search: the space, who proposes the settings, the journal, and how workers share the trials."""
