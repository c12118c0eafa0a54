"""Builds the optional CPU library; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(".", include=["vssm", "vssm.*"])
    + find_packages("kernels", include=["vssm_kernels", "vssm_kernels.*"]),
)
