"""What the README says, and what the code does, are the same list: every knob, reward, endpoint, format, number and file, both ways.

`python -m tests.test_documents` prints the knob table as the README must hold it.
"""

import ast
import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version as Release
from PIL import Image

from loophil.config import knobs
from loophil.evaluation import Figures
from loophil.types import Status, UpdateStats
from tests.conftest import find_chromium

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
_, FRONT_MATTER, VISIBLE = README.split("---\n", 2)

# Below these, something LoopHIL relies on is missing or unsafe.
FLOORS = {"gradio": "6.25", "diffusers": "0.42.1", "transformers": "5.3", "torch": "2.10"}
# DESIGN section 7: the line that `simulate` prints.
SIMULATED = ["clicks", "images", "updates", "seconds", "win_rate", "effect", "diversity", "prompt_following", "base_prompt_following"]
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# Paths of a developer's machine, and package indexes. Bracketed so that this file does not find itself.
PRIVATE = re.compile(
    r"(?<![\w.~/-])/(?:wor[k]|roo[t])/\w|inde[x]-url|find-lin[k]s|trusted-hos[t]|pytho[n]hosted|pyp[i]\.org|download\.pytorc[h]|artifactor[y]"
)


def section(title: str) -> str:
    """The README's text under `## title`."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", VISIBLE, re.MULTILINE | re.DOTALL)
    assert match, f"README has no section '{title}'"
    return match[1]


def first_column(text: str) -> list[str]:
    """The code spans that stand in the first cell of the tables' rows."""
    return [name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]


def knob_table() -> str:
    rows = [f"| `{flag}` | {f'`{default}`' if default else ''} | {sentence.replace('|', chr(92) + '|')} |" for flag, default, sentence in knobs()]
    return "\n".join(["| flag | default | what it does |", "|---|---|---|", *rows])


def tracked() -> list[str]:
    """Files that are, or would be, in the repository."""
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


def file_tree() -> list[str]:
    """Paths in the README's annotated tree; two spaces of indentation are one folder down."""
    fence = re.search(r"```text\n(.*?)```", section("Files"), re.DOTALL)
    assert fence, "no file tree in the README"
    paths: list[str] = []
    above: list[str] = []
    for line in fence[1].splitlines():
        name = line.split()[0]
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths.append("".join(above))
    return paths


def front_matter() -> dict[str, Any]:
    matter = yaml.safe_load(FRONT_MATTER)
    assert isinstance(matter, dict)
    return matter


def requirements(name: str) -> dict[str, Requirement]:
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if line and line[0] not in "#-"]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def keywords(path: str, name: str) -> set[str]:
    """String values given to a keyword argument anywhere in a file or folder."""
    files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    return {
        n.value.value
        for n in nodes
        if isinstance(n, ast.keyword) and n.arg == name and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)
    }


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = VISIBLE.strip().splitlines()[:15]
    assert [command for command in ("make app", "make test") if not any(line.startswith(command) for line in first)] == []


def test_knob_table_is_the_settings() -> None:
    assert knob_table() in section("Knobs")
    assert [name for name in first_column(section("Knobs")) if name.startswith("--")] == [flag for flag, _, _ in knobs()]


def test_reward_table_is_the_registry() -> None:
    from rewards import REWARDS

    assert set(first_column(section("Rewards"))) == set(REWARDS)


def test_endpoint_table_is_what_the_page_serves() -> None:
    named = {f"/{name.lstrip('/')}" for name in keywords("loophil", "api_name") | keywords("app.py", "api_name")}
    assert set(first_column(section("Contracts"))) == named


def test_reward_of_the_example_works(tmp_path: Path) -> None:
    """Two pictures, one of them red: the example in the README scores the red one 1 and the blue one 0."""
    from rewards import load, score_safely

    example = re.search(r"```python\n(.*?)```", section("Rewards"), re.DOTALL)
    assert example
    (tmp_path / "redness.py").write_text(example[1])
    reward = load(f"{tmp_path / 'redness.py'}:redness")
    scores, reason = score_safely(reward, [Image.new("RGB", (4, 4), color) for color in ("red", "blue")], ["a", "b"])
    assert (scores.value.tolist(), reason, reward.scale) == ([1.0, 0.0], None, 0.1)


def test_export_formats_are_those_of_the_code() -> None:
    from loophil.export import FORMATS
    from loophil.session import FORMATS as OFFERED

    row = next(line for line in section("Contracts").splitlines() if line.startswith("| `/export`"))
    assert set(re.findall(r'"(\w+)"', row)) == set(FORMATS) == set(OFFERED)


def test_every_number_that_is_logged_is_explained() -> None:
    fields = {field.name for field in dataclasses.fields(UpdateStats)}
    assert {field.name for field in dataclasses.fields(Figures)} < set(SIMULATED)
    assert set(first_column(section("Metrics"))) == fields | set(SIMULATED)


def test_every_field_of_the_status_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", section("Contracts")))
    assert {field.name for field in dataclasses.fields(Status)} - named == set()


def test_file_tree_holds_every_file_and_nothing_else() -> None:
    tree = file_tree()
    leaves = {path for path in tree if path.endswith("/") and not any(other != path and other.startswith(path) for other in tree)}
    missing = [name for name in tracked() if name not in tree and not any(name.startswith(leaf) for leaf in leaves)]
    assert missing == []
    assert [path for path in tree if not (ROOT / path).exists()] == []


def test_links_lead_to_files_and_sections() -> None:
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", VISIBLE, re.MULTILINE)}
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", VISIBLE) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (link[1:] in anchors if link.startswith("#") else (ROOT / link).exists())] == []


def test_commands_in_the_readme_exist() -> None:
    for module, command in re.findall(r"python -m (loophil|bench) (\w+)", README):
        source = (ROOT / module / "__main__.py").read_text("utf-8")
        assert f'"{command}"' in source, f"python -m {module} {command}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", VISIBLE, re.MULTILINE)) - set(targets) == set()


@pytest.mark.parametrize("name", FLOORS)
def test_requirements_stay_above_the_floors(name: str) -> None:
    requirement = requirements("requirements.txt")[name]
    lowest = min(Release(part.version) for part in requirement.specifier if part.operator in (">=", "=="))
    assert lowest >= Release(FLOORS[name])
    assert any(part.operator in ("<", "==") for part in requirement.specifier), "a new major version must not arrive by itself"


def test_front_matter_is_what_a_space_needs() -> None:
    matter = front_matter()
    assert (matter["sdk"], matter["python_version"], matter["license"]) == ("gradio", "3.12", "apache-2.0")
    assert matter["app_file"] == "app.py"
    assert (ROOT / matter["app_file"]).exists()
    assert requirements("requirements.txt")["gradio"].specifier.contains(matter["sdk_version"])
    assert {matter["colorFrom"], matter["colorTo"]} <= SPACE_COLOURS
    assert len(matter["short_description"]) <= 60
    assert matter["hf_oauth"] is True
    assert "hf_oauth_scopes" not in matter  # whoever signs in gives their name and no right to anything
    assert matter["suggested_hardware"] == "cpu-basic"  # what the embedded model needs, which it starts with


def test_no_developers_paths_or_package_indexes() -> None:
    found = []
    for name in tracked():
        try:
            text = (ROOT / name).read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match[0]}" for match in PRIVATE.finditer(text)]
    assert found == []


def test_changelog_is_headed_by_the_version_in_the_code() -> None:
    from loophil import __version__

    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings


def test_missing_browser_fails_under_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("bench.visitor.BROWSERS", ("chromium",))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install one of chromium"):
        find_chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="install one of chromium"):
        find_chromium()


if __name__ == "__main__":
    print(knob_table())
