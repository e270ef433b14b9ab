"""What GitHub reads parses, calls what there is, and asks for no more rights than it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_it_parses(path: Path) -> None:
    assert read(path)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
class TestWorkflows:
    def test_jobs_end_and_may_only_read_unless_they_say_more(self, workflow: Path) -> None:
        content = read(workflow)
        assert content["permissions"] == {"contents": "read"}
        assert True in content  # `on`, which is a boolean of YAML 1.1
        for job in content["jobs"].values():
            assert 0 < job["timeout-minutes"] < 360

    def test_actions_have_a_version(self, workflow: Path) -> None:
        used = [step["uses"] for step in steps(workflow) if "uses" in step]
        assert used
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", name) for name in used)

    def test_it_calls_what_there_is(self, workflow: Path) -> None:
        targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
        matrix = [job.get("strategy", {}).get("matrix", {}) for job in read(workflow)["jobs"].values()]
        for command in [step["run"] for step in steps(workflow) if "run" in step]:
            for target in re.findall(r"\bmake ([\w-]+)", command):
                assert target in targets
            for module in re.findall(r"-m (scripts\.\w+)", command):
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        for axes in matrix:
            assert all((ROOT / "tests" / name).is_dir() for name in axes.get("tests", ()))
            assert all(f"test-{name}" in targets for name in axes.get("transformers", ()))


def test_only_the_job_that_publishes_may_speak_to_pypi() -> None:
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]
    assert "run" not in str(jobs["publish"]["steps"])  # nothing of the checkout is run with that right


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_something_and_names_each_question(form: Path) -> None:
    content = read(form)
    questions = [part for part in content["body"] if part["type"] != "markdown"]
    assert content["name"]
    assert content["description"]
    assert any(part.get("validations", {}).get("required") for part in questions)
    names = [part["id"] for part in questions]
    assert len(set(names)) == len(names)
    assert all(part["attributes"]["label"] for part in questions)


def test_the_pull_request_template_links_to_the_checklist() -> None:
    template = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    assert "CONTRIBUTING.md#review-checklist" in template
    assert "\n## Review checklist\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
