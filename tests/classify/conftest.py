"""Runs of classifiers, as tests/engine has them."""

from ..engine.conftest import image_folder, make_config  # noqa: F401
