"""For mkdocs: the site also holds what its pages link to outside docs/, under its path in the repository.

Recipes come before the records of decisions in the site's search. The explorer's page carries its data, and the page
of the commands their arguments.
"""

import json
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)([)#\s])")
# On pages that others may be adding: without one, its entry in the navigation goes too.
ENTRY_POINTS = ("model_zoo.md", "CONTRIBUTING.md", "CHANGELOG.md")
# Stands on the page of the commands in place of a section for each.
COMMANDS = "<!-- the commands -->"
# GitHub's front page is not the site's.
MOVED = {"README.md": "index.md"}
DATA = "<!-- the explorer's data -->"
LOG = logging.getLogger("mkdocs.plugins.hooks")


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
            kept = {name: present(value) for name, value in entry.items()}
            return {name: value for name, value in kept.items() if value}
        if isinstance(entry, list):
            return [kept for kept in map(present, entry) if kept]
        if any((folder / entry).is_file() for folder in (ROOT, ROOT / "docs")):
            return entry
        LOG.info("no page %s: its entry in the navigation is left out", entry)
        return None

    config["nav"] = present(config["nav"])
    version = re.search(r'"(.+)"', (ROOT / "vssm" / "_version.py").read_text())[1]
    config["copyright"] = f"vssm {version}, Apache-2.0"
    # A link in the footer; the theme's own link to a repository would ask its server for stars.
    known = re.search(r'^(?:Repository|Source|Homepage) = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if known:
        config["extra"]["social"] = [{"icon": "material/source-repository", "link": known[1], "name": "Repository"}]
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
        page.meta.setdefault("search", {"boost": 0.001})  # a word in a title counts a thousandfold
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


def on_post_page(output, page, config):
    return output.replace(DATA, _explorer_data()) if DATA in output else output


def _explorer_data():
    """What the explorer's scripts read, as elements of the page: they work without a server, and fetch nothing."""
    from vssm.models import families  # here, because only this page needs it, and it takes seconds
    from vssm.viz import palette, scan_sequences

    zoo = json.loads((ROOT / "docs" / "explorer" / "zoo.json").read_text())
    colours = palette.family_colours()
    zoo["colours"] = {family.title: colours[family.name] for family in families()}
    patterns = [
        {"title": title, "sequences": [[route._asdict() for route in sequence] for sequence in sequences]}
        for title, sequences in scan_sequences().items()
    ]
    elements = []
    for name, content in (("zoo-data", zoo), ("routes-data", patterns)):
        text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
        elements.append(f'<script type="application/json" id="{name}">{text}</script>')
    scripts = ("dom", "table", "plot", "routes")
    elements += [f'<script src="../javascripts/{name}.js"></script>' for name in scripts]
    return "\n".join(elements)
