"""What the index shows of a release: addresses, and a README whose links work there."""

import os
import re
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

from vssm import __version__

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/owner/vssm"
sys.path.insert(0, str(ROOT / "tools"))
import check_release  # noqa: E402


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The metadata that a release's build writes."""
    folder = tmp_path_factory.mktemp("release")
    code = f"from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel({str(folder)!r})"
    environment = os.environ | {"VSSM_REPOSITORY": f"{ADDRESS}/"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")


def test_metadata(release):
    assert check_release.problems(release, __version__) == []
    fields = Parser().parsestr(release)
    assert fields["Description-Content-Type"] == "text/markdown"
    assert f"Repository, {ADDRESS}" in fields.get_all("Project-URL")


def test_links_are_those_of_the_readme(release):
    """All of them, each to the file that the clone's README means, of this version; pictures as they are."""
    pattern = r"(!?)\[[^\]]*\]\(([^)\s]+)\)"
    shown = re.findall(pattern, Parser().parsestr(release).get_payload())
    relative = 0
    for (mark, target), (_, whole) in zip(re.findall(pattern, (ROOT / "README.md").read_text()), shown, strict=True):
        if ":" in target:
            assert whole == target
            continue
        assert (ROOT / target.partition("#")[0]).exists()
        assert whole == f"{ADDRESS}/{'raw' if mark else 'blob'}/v{__version__}/{target}"
        relative += 1
    assert relative > 20


def test_what_is_wrong_is_named(release):
    assert "not 9.9" in check_release.problems(release, "9.9")[0]
    clone = re.sub(r"Project-URL: .*\n", "", release) + "\n![a picture](docs/images/a.png)\n"
    assert [problem.split(";")[0] for problem in check_release.problems(clone, __version__)] == [
        "The repository's address is missing",
        "The README links to 'docs/images/a.png', which the index has not.",
    ]


def test_a_release_is_complete(tmp_path, capsys):
    assert check_release.main([str(tmp_path), "--tag", "v0"]) == 1
    said = capsys.readouterr().out
    assert "The tag is v0" in said and "There are 0 files *.tar.gz, not 1." in said
