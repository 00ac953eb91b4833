"""What a job module imports: the Task it fills in, and the main that runs it."""

from tfbig.pipelines._main import main
from tfbig.training.task import Task

__all__ = ["Task", "main"]
