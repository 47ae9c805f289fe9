"""The launch files, executed by the real `launch` where there is one; what can be read without it is read."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from lima_ros import bringup

FOLDER = Path(__file__).resolve().parents[2] / "launch"
GRAPHS = {"perception": bringup.launch_graph, "replay": bringup.replay_graph}
EVERY = {**GRAPHS, "record": bringup.recorder_graph}


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rig of a replayed source is written to a temporary file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def arguments(name: str) -> dict[str, str]:
    """Name -> default of the declared arguments, read from the source."""
    for node in ast.parse((FOLDER / f"{name}.launch.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS":
            expression = ast.Expression(node.value)
            return {k: d for k, (d, _) in eval_literal(expression).items()}
    raise AssertionError(f"{name}.launch.py declares no ARGUMENTS")


def eval_literal(expression: ast.Expression) -> dict[str, tuple[str, str]]:
    """The table of arguments, with the one name that it uses put in."""

    class Names(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.Constant:
            assert ast.unparse(node) == "bringup.DEFAULT"
            return ast.Constant(bringup.DEFAULT)

    return ast.literal_eval(ast.fix_missing_locations(Names().visit(expression)))


@pytest.mark.parametrize("name", GRAPHS)
def test_declared_arguments_are_what_the_graph_takes(name: str) -> None:
    """Every declared argument is used, every default is valid, and the usual arguments are there."""
    declared = arguments(name)
    taken = inspect.signature(GRAPHS[name]).parameters
    inner = inspect.signature(bringup.perception_graph).parameters
    assert set(declared) <= set(taken) | set(inner)
    specs = GRAPHS[name](**bringup.typed(declared))
    assert specs[0].executable == "perception_node"
    common = {"namespace", "params_file", "log_level", "visualize", "rviz", "checkpoint", "device", "rig", "rate"}
    assert common <= set(declared)
    assert name != "perception" or {"bag", "loop", "use_sim_time", "autostart"} <= set(declared)


def test_defaults_are_those_of_the_graph() -> None:
    declared = bringup.typed(arguments("perception"))
    signatures = [inspect.signature(graph).parameters for graph in (bringup.perception_graph, bringup.launch_graph)]
    defaults = {name: parameter.default for taken in signatures for name, parameter in taken.items()}
    assert declared == {name: defaults[name] for name in declared}


def test_record_declares_what_its_graph_takes() -> None:
    declared, taken = arguments("record"), inspect.signature(bringup.recorder_graph).parameters
    assert set(declared) == {name for name in taken if name != "parameters"}
    assert bringup.typed(declared) == {name: taken[name].default for name in declared}
    assert bringup.recorder_graph()[0].executable == "recorder_node"


def load(name: str) -> ModuleType:
    pytest.importorskip(
        "launch_ros", reason="launch and launch_ros are on no package index: needs a ROS 2 installation"
    )
    spec = importlib.util.spec_from_file_location(f"{name}_launch", FOLDER / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EVERY)
def test_launch_starts_the_same_nodes(name: str) -> None:
    module = load(name)
    from launch import LaunchContext

    description, context = module.generate_launch_description(), LaunchContext()
    nodes = [node for entity in description.entities for node in entity.visit(context) or []]
    declared = arguments(name)
    specs = EVERY[name](**bringup.typed(declared))
    assert [(n.node_package, n.node_executable) for n in nodes] == [(s.package, s.executable) for s in specs]
