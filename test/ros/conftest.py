"""Real ROS 2 for the tests: an own domain, loopback only, and every node under test in a process of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lima_ros import bringup, processes

PIP_LINE = (
    'pip install "ros-rclpy[fastrtps]==9.1.2" ros-sensor-msgs==5.5.1 ros-nav-msgs==5.5.1 '
    "ros-std-srvs==5.5.1 ros-diagnostic-msgs==5.5.1"
)


@pytest.fixture(scope="session")
def ros_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of this session's nodes, also set in this process: a domain nobody else uses, loopback only."""
    pytest.importorskip("rclpy", reason=f"needs ROS 2: source its setup file, or {PIP_LINE}")
    env = bringup.isolated_environment(tmp_path_factory.mktemp("ros_log"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield env


@pytest.fixture
def start_node(ros_env: dict[str, str], tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager]:
    """start_node("perception_node", parameters={...}, remappings={...}) -> context manager of a `processes.Process`.

    Leaving the context sends SIGINT and waits; `process.returncode` is the exit status, `process.output()` what
    it printed. A process that does not end within the deadline is killed and its shared memory removed.
    """

    @contextlib.contextmanager
    def start(
        executable: str,
        parameters: dict[str, Any] | None = None,
        remappings: dict[str, str] | None = None,
        name: str | None = None,
        env: dict[str, str] | None = None,
        stop_timeout_s: float = 15.0,
        **spec: Any,
    ) -> Iterator[processes.Process]:
        process = processes.Process(
            bringup.NodeSpec(
                executable,
                name or executable.removesuffix("_node"),
                parameters=(parameters,) if parameters else (),
                remappings=tuple((remappings or {}).items()),
                env={**ros_env, **(env or {})},
                **spec,
            ),
            tmp_path,
        )
        try:
            yield process
        finally:
            process.stop(stop_timeout_s)

    return start


@pytest.fixture
def await_output() -> Callable[..., None]:
    """await_output(process, text, timeout_s=20): returns once the process has printed the text."""

    def wait(process: processes.Process, text: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in process.output():
            assert process.returncode is None and time.monotonic() < deadline, process.output()
            time.sleep(0.02)

    return wait


class Tester:
    """A node in the test's own process; its callbacks run in the test's thread, inside `spin_until`."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context)
        self.node = rclpy.create_node("tester", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)

    def collect(self, message_type: type, topic: str, qos: Any = 10) -> list[Any]:
        """Subscribes; the list returned grows with every message."""
        received: list[Any] = []
        self.node.create_subscription(message_type, topic, received.append, qos)
        return received

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 20.0, what: str = "the condition") -> None:
        """Runs callbacks until `condition()` holds. Raises AssertionError naming `what` when it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
            self._executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        """Runs callbacks for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def close(self) -> None:
        """Destroys the node and its context."""
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def tester(ros_env: dict[str, str]) -> Iterator[Tester]:
    """A `Tester`: `.node` to publish from, `.collect(type, topic)`, `.spin_until(condition, timeout_s, what)`."""
    tester = Tester()
    yield tester
    tester.close()
