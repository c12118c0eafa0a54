"""Read run configs, and turn mistakes in them into sentences."""

import ast
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DATASETS
from mmengine.runner import Runner as MMRunner

from .._configs import ConfigError, config_names, find_config
from .._errors import MissingExtraError, UserError, did_you_mean
from .._optional import needs_extra
from .._tasks import find_task, tasks
from .types import only_known_types, remember_packages, unknown_type

# mmengine looks for the configs that `package::` names in distributions whose names it knows, some of which are not the
# maintained ones. Under its import name a package is found whatever the distribution's name.
MODULE2PACKAGE.update({package: package for task in tasks() for package in task.inherits})

# Top-level names that no constructor argument of the Runner stands for, but that it or Config reads.
_EXTRA_NAMES = {
    "load_classes",
    "custom_imports",
    "default_scope",
    "model_wrapper_cfg",
    "find_unused_parameters",
    "sync_bn",
    "compile",
    "activation_checkpointing",
}


def check_options(function: Callable, options: Mapping[str, Any], where: str) -> None:
    """Refuse options that a function does not take.

    Args:
        function: The function that will be called with ``options``.
        options: Keyword arguments from a config.
        where: The config key they stand under, for the message.

    Raises:
        ConfigError: An option is unknown; the message names it and its near matches.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for name in options:
        if name not in known:
            raise ConfigError(f"{where} has the unknown option '{name}'{did_you_mean(name, known)}.")


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and lay options from the command line over it.

    Args:
        path: A ``.py`` config, or the short name of one of the package's.
        options: Dotted keys and their values, for example ``{"optim_wrapper.optimizer.lr": 1e-3}``.

    Returns:
        The merged config. The package of its task is imported, so that what it names is registered.

    Raises:
        MissingExtraError: It inherits from a package that is not installed, or its task needs one.
        ConfigError: The file is missing or does not parse, or an option's first name is no part of a config.
    """
    path = find_config(path)
    if not Path(path).is_file():
        beside = did_you_mean(str(Path(path)), map(str, Path(path).parent.glob("*.py")))
        if not beside and Path(path).stem in config_names():
            beside = f" (the package's own is called '{Path(path).stem}')"
        raise ConfigError(f"Config '{path}' does not exist{beside}.")
    if Path(path).suffix != ".py":
        raise ConfigError(f"Config '{path}' is not a .py file.")
    try:
        ast.parse(Path(path).read_text(encoding="utf-8"))
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ConfigError(f"Config '{path}' does not parse: {error.msg} at line {error.lineno}.") from error
    except FileNotFoundError as error:
        raise ConfigError(f"Config '{path}' inherits a file that does not exist: {error}.") from error
    except ModuleNotFoundError as error:
        if "is not installed" not in str(error):
            raise ConfigError(f"Config '{path}' cannot be read: {error}") from error
        package = str(error).split()[0]
        extra = next((task.inherits[package] for task in tasks() if package in task.inherits), None)
        if extra is None:
            raise ConfigError(f"Config '{path}' inherits from {package}, which is not installed.") from error
        raise MissingExtraError(f"Config '{path}' inherits from {package}, which {needs_extra(extra)}") from error
    except (ImportError, KeyError, NameError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:  # mmengine words what a module of `custom_imports` raises anew
            if isinstance(cause, MissingExtraError):
                raise MissingExtraError(f"Config '{path}' cannot be read: {cause}") from error
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(f"Config '{path}' cannot be read: {type(error).__name__}: {error}") from error

    remember_packages(cfg)
    known = {*inspect.signature(MMRunner.__init__).parameters, *_EXTRA_NAMES, *cfg} - {"self", "cfg"}
    for key in options or {}:
        name = key.split(".")[0]
        if name == "custom_imports":
            raise ConfigError(f"--cfg-options cannot set '{key}': imports are read with the file, write them there.")
        if name not in known:
            # mmengine would store the typo and silently run without it.
            raise ConfigError(f"--cfg-options names '{key}', but no config has '{name}'{did_you_mean(name, known)}.")
    if options:
        try:
            cfg.merge_from_dict(dict(options))
        except (AssertionError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"--cfg-options cannot be laid over '{path}': {error}") from error
    found = unknown_type(dict(cfg.items()))
    if found:
        raise ConfigError(
            f"The config's {found[0]} is '{found[1]}', which is neither registered nor a class of a known package; "
            "register it, or name its package in the file's custom_imports."
        )
    task = find_task(cfg)
    if task is not None:
        task.load()
    return cfg


def test_data(cfg: Mapping[str, Any], method: str = "transform_from") -> tuple[type, Mapping[str, Any]]:
    """Find the data set that a run is tested on, which says how images become the model's inputs.

    Args:
        cfg: The run's config.
        method: What the data set's class has to have for it.

    Returns:
        The class, and the data set's options.

    Raises:
        ConfigError: There is no test data set, or its class has no such method.
    """
    dataset = (cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}).get("dataset")
    kind = DATASETS.get(dataset["type"]) if dataset else None
    if kind is None or not hasattr(kind, method):
        raise ConfigError("The config has no test_dataloader.dataset that says how to transform images.")
    return kind, dataset


def image_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the images that a run's transforms or its loop give the model; None: the config does not say.

    Of a data set that wraps another the transform may stand with the inner one.
    """
    for part in ("val", "test", "train"):
        dataset = (cfg.get(f"{part}_dataloader") or {}).get("dataset") or {}
        while "transform" not in dataset and isinstance(dataset.get("dataset"), Mapping):
            dataset = dataset["dataset"]
        transform = dataset.get("transform") or {}
        loop = cfg.get(f"{part}_cfg") or {}
        side = transform.get("input_size") or transform.get("size") or loop.get("size")
        if side:
            return (side, side) if isinstance(side, int) else tuple(side)[-2:]
    return None


def use_amp(cfg: Config) -> None:
    """Switch a training config to automatic mixed precision, in place.

    Raises:
        ConfigError: The config has no ``optim_wrapper``, or one of a type that mixed precision cannot replace.
    """
    wrapper = cfg.get("optim_wrapper")
    if wrapper is None:
        raise ConfigError("--amp needs a config with an optim_wrapper.")
    kind = wrapper.get("type", "OptimWrapper")
    if kind in ("AmpOptimWrapper", "AutoAmpOptimWrapper", "BFloat16OptimWrapper"):
        return
    if kind != "OptimWrapper":
        raise ConfigError(f"--amp replaces an optim_wrapper of type 'OptimWrapper', but the config has '{kind}'.")
    wrapper.type = "AutoAmpOptimWrapper"


def use_tta(cfg: Config) -> None:
    """Switch a test to test-time augmentation, the average over scales and flips that the config describes, in place.

    Raises:
        ConfigError: The config has no ``tta_model`` or no ``tta_pipeline``.
    """
    missing = [name for name in ("tta_model", "tta_pipeline") if name not in cfg]
    if missing:
        raise ConfigError(f"--tta needs a config with {' and '.join(missing)}; mmseg's configs have them.")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def on_gpu() -> bool:
    """Return whether mmengine will put models on a CUDA device."""
    return torch.cuda.is_available()


@contextmanager
def explain_config_mistakes() -> Iterator[None]:
    """Turn errors that mmengine raises while it builds objects from a config into one sentence.

    Only errors raised by the building call itself count: an unknown type, arguments that a constructor does not take,
    or a value that the constructor itself refuses. Anything raised deeper is not known to be the config's fault and
    passes through. Types that a config may not name, see `vssm.engine.types`, are not found meanwhile.

    Raises:
        ConfigError: A type or an option of a type is unknown, a required one is missing, or a value is refused.
    """
    try:
        with only_known_types():
            yield
    except UserError as error:
        # Arguments of Python are keys of the config here.
        error.for_tools = None
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        builders = [Path(frame.filename).name == "build_functions.py" for frame in frames]
        by_builder = builders[-1] and isinstance(error, KeyError | TypeError)
        by_constructor = any(builders) and frames[-1].name == "__init__" and not isinstance(error, KeyError | TypeError)
        if not (by_builder or by_constructor):
            raise
        text = str(error.args[0]) if error.args else str(error)
        if not text:
            # A bare assert of another library says nothing; the object whose constructor it stands in is known.
            text = f"{_constructed(error)} refuses its options with a bare {type(error).__name__}"
        raise ConfigError(f"The config cannot be built: {text.split('. Please check')[0].rstrip('.')}.") from error


def _constructed(error: BaseException) -> str:
    """The class of the object in whose constructor an error was raised."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    owner = step.tb_frame.f_locals.get("self") if step is not None else None
    return type(owner).__name__ if owner is not None else "a constructor"
