"""Networks of runs, to be counted."""

from mmengine.config import Config

from ..engine.config import image_size
from ..profiling.subjects import Subject, outline_of

__all__ = ["counted_subject"]


def counted_subject(cfg: Config, name: str) -> Subject:
    """Build a run's network without weights, and say at which size the run works.

    Raises:
        ConfigError: The model cannot be built.
    """
    return Subject(name, outline_of(cfg).model, (3, *(image_size(cfg) or (224, 224))))
