"""The one part of tfbig that is compiled; everything else about the package is in setup.cfg.

It decodes training pictures faster. Without a compiler or the header of libjpeg-turbo (Debian and Ubuntu: gcc and
libjpeg-dev) tfbig is installed without it, and decodes them by TensorFlow.
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
        )
    ]
)
