"""Builds the native kernels with the package; where there is no C++ compiler, the package works without them."""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("bimo/engine/kernels/src")

# Each instruction set's file says for itself what it is compiled for, so that one build runs on every CPU of its kind.
# Sums keep the order in which they are written: no -ffast-math, no fusing of products and sums behind our back.
FLAGS = ["-std=c++17", "-O3", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "bimo.engine.kernels._native",
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=sorted(str(path) for pattern in ("*.h", "*.inc") for path in SOURCES.glob(pattern)),
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
    ]
)
