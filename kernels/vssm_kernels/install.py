"""The commands that install this package, as messages name them. The release on the index changes this place alone."""

# What pip is given. "vssm" once that name is on the index; until then the folder of a clone.
SOURCE = "."
_WHERE = " in a clone of the repository" if SOURCE == "." else ""


def install_command(*extras: str) -> str:
    """Return what a person types to install the package.

    Args:
        extras: Names of optional parts, for example ``"train"``.

    Returns:
        The command, for example ``"pip install '.[train]'"``.
    """
    return f"pip install '{SOURCE}[{','.join(extras)}]'" if extras else f"pip install {SOURCE}"


def how_to_install(*extras: str) -> str:
    """Return `install_command` and where it works, as the end of a sentence."""
    return install_command(*extras) + _WHERE


def how_to_build() -> str:
    """Return the command that compiles the CPU library anew, and where it works.

    pip would else take the wheel that it built and kept when there was no compiler, or one from the index.
    """
    from_source = "" if SOURCE == "." else " --no-binary vssm"
    return f"pip install --force-reinstall --no-deps --no-cache-dir{from_source} {SOURCE}{_WHERE}"
