"""One thin module a job; `python -m tfbig.pipelines.NAME` runs it. Importing one imports no TensorFlow."""
