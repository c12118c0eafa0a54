"""The tasks that runs are for, as far as the floors below them know them: by a registry.

`vssm.tasks` fills the registry. Training, prediction, counting and pictures ask it for the task of a config and know no
task by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from ._errors import UserError

__all__ = ["NamedModel", "Run", "Task", "Wanted", "find_task", "register_task", "task_of", "task_of_names", "tasks"]


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        cfg: Its config.
        checkpoint: The file with its weights.
    """

    cfg: Mapping[str, Any]
    checkpoint: str


@dataclass(frozen=True)
class NamedModel:
    """A model of timm's registry.

    Attributes:
        name: Its name there.
        pretrained: Whether its published weights are loaded.
        checkpoint: A file with its weights, instead of the published ones.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Wishes for the answers: where they go and how many there are.

    Attributes:
        device: Where to run; None: a GPU if there is one.
        out: A folder for answers that are files.
        topk: How many classes are named for an image.
        batch_size: Images per forward pass.
        score_threshold: Objects below are left out.
        json_file: A file for answers as numbers.
        csv_file: A file for answers that are a table.
    """

    device: str | None = None
    out: str | None = None
    topk: int = 5
    batch_size: int = 32
    score_threshold: float = 0.3
    json_file: str | None = None
    csv_file: str | None = None


class Task(ABC):
    """A task: which configs are its, and how their models predict, are counted and are looked into.

    Attributes:
        name: A verb and what it is done to, for messages.
        models: Types of the models that its configs name; subclasses of them are its too.
        takes_names: Whether a model of timm's registry can do it without a config.
        inherits: Packages whose configs its configs may inherit, and the extra of ours that installs each.
        headlines: What its runs are judged by: a metric's name in the log, and its title in a picture.
        formerly: Public names that another package gave before they moved into the task's own, by package. Old configs
            import that package to register what they name.
    """

    name: ClassVar[str]
    models: ClassVar[frozenset[str]] = frozenset()
    takes_names: ClassVar[bool] = False
    inherits: ClassVar[Mapping[str, str]] = {}
    headlines: ClassVar[Mapping[str, str]] = {}
    formerly: ClassVar[Mapping[str, Sequence[str]]] = {}

    def takes(self, cfg: Mapping[str, Any]) -> bool:
        """Return whether a config is of this task."""
        return not self.models.isdisjoint(_class_names(cfg))

    @abstractmethod
    def load(self) -> ModuleType:
        """Import the task's package, which registers everything that its configs name, and return it."""

    @abstractmethod
    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Answer for files, on the terminal or as files.

        Args:
            model: What answers.
            paths: Files and folders.
            wanted: How.

        Returns:
            0, or 1 when a file could not be read; the others are answered all the same.

        Raises:
            UserError: The config, the checkpoint, a folder or what is wanted cannot be used.
        """

    def draw(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Draw answers for files into ``wanted.out``; arguments, result and errors of :meth:`predict`."""
        return self.predict(model, paths, wanted)

    def classes_in(self, sample: Any) -> Iterable[int]:
        """Return the numbers of the classes in one sample of its data sets; none where it does not know.

        Args:
            sample: As a data set of its configs gives it.
        """
        return ()

    @abstractmethod
    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        """Build a config's network without weights, to be counted.

        Args:
            cfg: The config.
            name: What the subject is called in tables.

        Returns:
            A ``vssm.profiling.subjects.Subject``.

        Raises:
            ConfigError: The model cannot be built.
        """

    @abstractmethod
    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        """Build a config's network, and what makes its inputs from images, for pictures of what goes on in it.

        Args:
            cfg: The config.
            checkpoint: The run's weights; None: random ones, or those that the config itself names.
            device: Where to run.

        Returns:
            A ``vssm.viz.subject.Subject``.

        Raises:
            ConfigError: The config does not say how images are prepared.
            CheckpointError: The checkpoint cannot be read, or is of another model.
        """


_TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Add a task; where two take a config, the one that was added first has it."""
    return _TASKS.setdefault(task.name, task)


def tasks() -> list[Task]:
    """Return all tasks, in the order in which they were added."""
    return list(_TASKS.values())


def find_task(cfg: Mapping[str, Any]) -> Task | None:
    """Return the task of a config, or None: training and testing need none."""
    return next((task for task in tasks() if task.takes(cfg)), None)


def task_of(cfg: Mapping[str, Any]) -> Task:
    """Return the task of a config.

    Raises:
        UserError: It has none; the message names the tasks that there are.
    """
    task = find_task(cfg)
    if task is None:
        kind = (cfg.get("model") or {}).get("type")
        what = f"a {kind if isinstance(kind, str) else kind.__name__}" if kind else "no model"
        file = getattr(cfg, "filename", None)
        named = f"Config '{file}'" if file else "The config"
        raise UserError(f"{named} describes {what}, which is for none of the tasks here: {_names(tasks())}.")
    return task


def task_of_names() -> Task:
    """Return the task of models that are given by their names, without a config.

    Raises:
        UserError: There is none.
    """
    for task in tasks():
        if task.takes_names:
            return task
    raise UserError(f"No task takes a model by its name; give a config. There are {_names(tasks())}.")


def _names(some: Sequence[Task]) -> str:
    return ", ".join(task.name for task in some) or "none"


def _class_names(cfg: Mapping[str, Any]) -> set[str]:
    """The type of a config's model, and of its bases where it is registered."""
    kind = (cfg.get("model") or {}).get("type")
    if not kind:
        return set()
    names = {kind} if isinstance(kind, str) else set()
    if isinstance(kind, str):
        from mmengine.registry import MODELS

        kind = MODELS.get(kind)
    return names | {base.__name__ for base in getattr(kind, "__mro__", ())}
