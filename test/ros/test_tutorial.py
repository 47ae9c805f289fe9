"""The tutorial's steps: what it runs is what its page tells, each step once, and a failing one ends it."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from lima_core.config import read_config
from lima_core.pretrain import PretrainConfig
from lima_core.training.finetune_config import FinetuneConfig
from lima_ros import tutorial

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_one_of_ours_and_in_the_text(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    steps = tutorial.steps(Path("runs/tutorial"), tutorial.HUB)
    for step in steps:
        assert importlib.util.find_spec(step.module) is not None
        assert f"python -m {step.module}" in text, step.module
    assert steps[0].line in text and steps[1].line in text
    assert len({step.result for step in steps}) == len(steps)


def test_training_options_are_valid() -> None:
    configs = {"lima_core.pretrain": PretrainConfig, "lima_core.finetune": FinetuneConfig}
    steps = [s for s in tutorial.steps(Path("runs/tutorial"), "weights.safetensors") if s.module in configs]
    assert len(steps) == 5
    for step in steps:
        config = read_config(configs[step.module], list(step.arguments), step.module, "tutorial")
        assert config.data.root == "runs/tutorial/recordings" and config.out == str(step.result.parent)


def test_a_step_is_done_once_and_again_where_its_result_is_gone(tmp_path: Path, capsys) -> None:
    (tmp_path / "in.json").write_text("[1]")
    step = tutorial.Step(
        "copy", "json.tool", (str(tmp_path / "in.json"), str(tmp_path / "out.json")), tmp_path / "out.json"
    )
    log = tmp_path / "log"
    first = tutorial.run(step, log)
    assert step.result.is_file() and first > 0 and "done before" not in capsys.readouterr().out
    assert tutorial.run(step, log) == pytest.approx(first, abs=0.06) and "done before" in capsys.readouterr().out
    step.result.unlink()
    tutorial.run(step, log)
    assert step.result.is_file()


def test_a_step_that_fails_ends_the_tutorial(tmp_path: Path) -> None:
    step = tutorial.Step("fail", "json.tool", (str(tmp_path / "missing"),), tmp_path / "out.json")
    with pytest.raises(subprocess.CalledProcessError):
        tutorial.run(step, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_readme_and_text_have_the_same_table() -> None:
    row = tutorial.table([tutorial.Row("x", 1, 2, 3)]).splitlines()[0]
    readme, text = ((ROOT / name).read_text() for name in ("README.md", "docs/tutorial.md"))
    begin = readme.index(row)
    assert readme[begin:].split("\n\n")[0] in text
