"""What is done over and over in a run, done once or not at all; nothing that a test is about."""

import copy
import functools

import pytest


def patch_mmengine(patch: pytest.MonkeyPatch) -> None:
    """Do nothing where mmengine is not installed."""
    try:
        from mmengine.config import utils
        from yapf.yapflib import yapf_api
    except ImportError:
        return
    # The index of all of mmdet's models, 300 files, is parsed for every config of mmdet's that one inherits.
    patch.setattr(utils, "load", functools.cache(utils.load))
    # A config is formatted for the log, for the file, and for every checkpoint: half a second each time.
    patch.setattr(yapf_api, "FormatCode", _leave_as_it_is)


def _leave_as_it_is(text: str, **options) -> tuple[str, bool]:
    compile(text, "config", "exec")  # the formatter, too, would raise a SyntaxError
    return text, False


@functools.cache
def _read(path: str):
    from vssm.engine import load_config

    return load_config(path)


def read_config(path):
    """A config to change as one likes; its file is read once, however many tests look at it."""
    return copy.deepcopy(_read(str(path)))
