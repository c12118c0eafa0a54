"""Find the files of a data set: what is taken, and what is not and has to be said."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .._errors import DataError
from .._inputs import list_files
from .files import stem


def find_root(root: str | os.PathLike | None, env: str, default: str) -> Path:
    """Find a data set's folder: the config's, else the environment variable's, else ``default``.

    Raises:
        DataError: It does not exist; the message says where it was looked for, and why there.
    """
    folder = Path(root or os.environ.get(env) or default).expanduser()
    if folder.is_dir():
        return folder
    if root:
        source = "the config key dataset.root names it"
    elif os.environ.get(env):
        source = f"the environment variable {env} names it"
    else:
        source = f"neither the config key dataset.root nor the environment variable {env} is set"
    raise DataError(f"The folder '{folder}' does not exist ({source}).")


def pair_files(images: Path, labels: Path, suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
    """Pair images with their labels by name.

    Args:
        images: Folder of the images; nnU-Net's ``_0000`` at the end of a name is ignored.
        labels: Folder of the labels; ``_segmentation``, ``_mask`` or ``_label`` at the end of a name is ignored.
        suffixes: Of files that count, in lower case; see :func:`list_files`.

    Returns:
        The pairs, sorted by name.

    Raises:
        DataError: A folder is missing or empty, one of a pair is, or two files of a folder have the same name.
    """
    found = by_name(list_files(images, suffixes), lambda path: stem(path).removesuffix("_0000"))
    truth = _labels_by_case(labels, suffixes)
    _check_partners({case: [path] for case, path in found.items()}, truth, images, labels, suffixes)
    return [(found[case], truth[case]) for case in sorted(found)]


def pair_channels(images: Path, labels: Path, suffixes: Sequence[str]) -> dict[str, tuple[list[Path], Path]]:
    """Pair volumes of one or several channels with their labels by name.

    Args:
        images: Folder of the images. The channels of a case are ``<case>_0000``, ``<case>_0001`` and so on, as nnU-Net
            names them; one channel may go without the number.
        labels: Folder of the labels, ``<case>``; ``_segmentation``, ``_mask`` or ``_label`` at the end is ignored.
        suffixes: Of files that count, in lower case; see :func:`list_files`.

    Returns:
        Of each case, sorted by name, the files of its channels and of its labels.

    Raises:
        DataError: A folder is missing or empty, one of a pair or a channel is, two files are of one case and channel,
            or not all cases have as many channels.
    """
    truth = _labels_by_case(labels, suffixes)
    found: dict[str, dict[int, Path]] = {}
    for name, path in by_name(list_files(images, suffixes)).items():
        numbered = None if name in truth else re.fullmatch(r"(.*)_(\d{4})", name)
        case, channel = (numbered[1], int(numbered[2])) if numbered and numbered[1] in truth else (name, 0)
        channels = found.setdefault(case, {})
        if channel in channels:
            raise DataError(f"'{channels[channel]}' and '{path.name}' are two files of the same case, '{case}'.")
        channels[channel] = path
    _check_partners({case: found[case].values() for case in found}, truth, images, labels, suffixes)
    most = 1 + max(max(channels) for channels in found.values())
    for case in sorted(found):
        absent = [number for number in range(most) if number not in found[case]]
        if absent:
            raise DataError(
                f"The case '{case}' in '{images}' lacks channel {absent[0]}, the file '{case}_{absent[0]:04d}'; all "
                f"cases need the {most} channels that are there."
            )
    return {case: ([found[case][number] for number in range(most)], truth[case]) for case in sorted(found)}


def _labels_by_case(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    return by_name(list_files(folder, suffixes), lambda path: re.sub(r"_(segmentation|mask|label)$", "", stem(path)))


def _check_partners(
    found: Mapping[str, Iterable[Path]], truth: Mapping[str, Path], images: Path, labels: Path, suffixes: Sequence[str]
) -> None:
    """Refuse a folder without images, and images and labels of cases that the other folder lacks."""
    if not found:
        raise DataError(f"The folder '{images}' holds no file with the suffix {' or '.join(suffixes)}.")
    lonely = [str(path) for case in found if case not in truth for path in found[case]]
    lonely += [str(truth[case]) for case in truth if case not in found]
    if lonely:
        more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
        raise DataError(
            f"{len(lonely)} files in '{images}' and '{labels}' have no partner of the same name: "
            f"{', '.join(lonely[:5])}{more}."
        )


def by_name(paths: Sequence[Path], name: Callable[[Path], str] = stem) -> dict[str, Path]:
    """Return the files by the name of their case.

    Args:
        paths: The files.
        name: Gives a file's case.

    Raises:
        DataError: Two files are of the same case.
    """
    named = {path: name(path) for path in paths}
    case, count = max(Counter(named.values()).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        twice = [path for path in paths if named[path] == case]
        raise DataError(f"'{twice[0]}' and '{twice[1].name}' are two files of the same case, '{case}'.")
    return {case: path for path, case in named.items()}


def require_all(paths: Sequence[Path], source: str) -> None:
    """Refuse a list of files that are not all there.

    Args:
        paths: The files.
        source: What names them, for the message.

    Raises:
        DataError: One is missing, or there is none.
    """
    if not paths:
        raise DataError(f"There is no file in {source}.")
    absent = [path for path in paths if not path.is_file()]
    if absent:
        names = ", ".join(f"'{path}'" for path in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise DataError(f"{len(absent)} of the {len(paths)} files in {source} do not exist: {names}{more}.")


def read_list(root: Path, folders: Sequence[str], name: str) -> list[str] | None:
    """Return the lines of a list file, of the first of the folders in ``root`` that has it; None if none does.

    Raises:
        DataError: The file cannot be read.
    """
    for folder in folders:
        path = root / folder / name
        if path.is_file():
            try:
                return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"The list '{path}' cannot be read: {error}.") from error
    return None
