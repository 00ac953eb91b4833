"""The two parts of tfbig that are compiled; everything else about the package is in setup.cfg.

The one decodes training pictures faster, the other normalises batches of activations. Where one cannot be compiled
(Debian and Ubuntu: gcc, and libjpeg-dev for the first) tfbig is installed without it, and TensorFlow does its work.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tfbig.data._jpeg",
            ["tfbig/data/_jpeg.c"],
            libraries=["jpeg"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        ),
        # A library that TensorFlow loads, and no module of Python's.
        Extension(
            "tfbig.networks._batch_norm",
            [
                "tfbig/networks/_batch_norm.c",
                "tfbig/networks/_batch_norm_operations.c",
                "tfbig/networks/_batch_norm_threads.c",
            ],
            depends=[f"tfbig/networks/_batch_norm{part}.h" for part in ("", "_numbers", "_threads")],
            # Comparisons of numbers may then be made for several at once.
            extra_compile_args=["-O3", "-fno-trapping-math", "-pthread"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
            optional=True,
        ),
    ]
)
