"""For mkdocs: the site also holds what its pages link to outside docs/, under its path in the repository.

In the site's search, recipes come before the records of decisions. The API page of the models lists every family,
and the page of the commands their arguments.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)([)#\s])")
# On pages that others may be adding: without one, its entry in the navigation goes too.
ENTRY_POINTS = ("model_zoo.md", "CONTRIBUTING.md")
# Stands on the API page in place of one entry for each family.
FAMILIES = "<!-- the families -->"
# Stands on the page of the commands in place of a section for each.
COMMANDS = "<!-- the commands -->"
# GitHub's front page is not the site's.
MOVED = {"README.md": "index.md"}


def _targets(text, folder):
    """Files of the repository that a page in `folder` links to, as paths from the root."""
    for _, target, _ in LINK.findall(text):
        if "://" not in target:
            path = posixpath.normpath(posixpath.join(folder, target))
            if (ROOT / path).is_file():
                yield path


def _in_repository(file):
    """Path of a page's source from the root of the repository."""
    return Path(file.abs_src_path).relative_to(ROOT).as_posix()


def _commands():
    """A section for each command: its help as the terminal shows it."""
    from vssm.commands import COMMANDS, command_help

    return "\n\n".join(f"## vssm {name}\n\n```text\n{command_help(name)}```" for name in COMMANDS)


def on_config(config):
    def present(entry):
        if isinstance(entry, dict):
            return {name: present(value) for name, value in entry.items()}
        if isinstance(entry, list):
            return [kept for kept in map(present, entry) if kept]
        return entry if any((folder / entry).is_file() for folder in (ROOT, ROOT / "docs")) else None

    config["nav"] = present(config["nav"])
    return config


def on_files(files, config):
    waiting = [_in_repository(file) for file in files.documentation_pages()]
    waiting += [name for name in ENTRY_POINTS if (ROOT / name).is_file()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            found = set(_targets((ROOT / path).read_text(), posixpath.dirname(path)))
            found -= seen | MOVED.keys()
            seen |= found
            waiting += sorted(found)
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri.startswith("decisions/"):
        page.meta.setdefault("search", {"boost": 0.5})
    if FAMILIES in markdown:
        from vssm.models import families  # here, because only this page needs it, and it takes seconds

        entries = [f"::: {family.module.__name__}" for family in families()]
        markdown = markdown.replace(FAMILIES, "\n\n".join(entries))
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, _commands())
    here = posixpath.dirname(_in_repository(page.file))

    def relink(match):
        before, target, after = match.groups()
        path = posixpath.normpath(posixpath.join(here, target))
        if "://" in target or not (ROOT / path).is_file():
            return match[0]
        on_site = MOVED.get(path, path.removeprefix("docs/"))
        return before + posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or ".") + after

    return LINK.sub(relink, markdown)
