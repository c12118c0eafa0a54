"""The tasks of this package; importing this adds them to the registry that the floors below ask.

Each imports what it needs when it is asked for something, so all are there whatever extras are installed.
"""

from .._tasks import register_task
from .classify import Classify
from .detect import Detect
from .fewshot import LearnFromFew
from .label import Label
from .pose import Pose
from .pretrain import Pretrain
from .segment import Segment

__all__ = ["Classify", "Detect", "Label", "LearnFromFew", "Pose", "Pretrain", "Segment"]

# A model's type says more than the scope of a config, so those that go by types are asked first.
for _task in (Classify(), LearnFromFew(), Label(), Pose(), Pretrain(), Detect(), Segment()):
    register_task(_task)
