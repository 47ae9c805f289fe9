"""Runs nodes described in lima_ros/bringup.py as processes, for the demo and the tests; no rclpy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from lima_ros.node_spec import NodeSpec, command


class Process:
    """A started node. Its output goes to the file `log`; `stop` or `wait` ends it."""

    def __init__(self, spec: NodeSpec, folder: Path) -> None:
        self.spec = spec
        self.log = folder / f"{spec.name}.log"
        line = command(spec, folder)
        checkout = str(Path(__file__).resolve().parent.parent)
        paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **spec.env}
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(line, env=env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Waits for its own end and returns the exit status. Raises TimeoutError with the end of its output."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.spec.name} still runs after {timeout_s} s:\n{self.output()[-2000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._popen.send_signal(number)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGINT, and after the deadline SIGKILL; returns the exit status."""
        if self.returncode is None:
            self.send(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._popen.wait(timeout_s)
            shared_memory = _shared_memory(self._popen.pid)
            self._popen.kill()
            self._popen.wait()
            _remove_orphans(shared_memory)
        return self._popen.returncode


@contextlib.contextmanager
def running(specs: Sequence[NodeSpec], folder: Path) -> Iterator[list[Process]]:
    """Runs the nodes of a graph as processes, in order, and stops them in reverse order at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes = []
        for spec in specs:
            process = Process(spec, folder)
            stack.callback(process.stop)
            processes.append(process)
        yield processes


def _shared_memory(pid: int) -> set[Path]:
    """Fast DDS' files in /dev/shm that a process has mapped."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        files = {Path(line.split(maxsplit=5)[5]) for line in lines if " /dev/shm/" in line}
        return {path for path in files if path.name.startswith(("fastdds_", "fastrtps_"))}
    return set()


def _remove_orphans(files: set[Path]) -> None:
    """Removes what a killed process left in /dev/shm (128 MB each), except what others still use."""
    if not files:
        return
    in_use = set().union(*(_shared_memory(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()))
    for path in files - in_use:
        for name in (path.name, f"{path.name}_el", f"sem.{path.name}_mutex"):  # segment, lock file, mutex
            path.with_name(name).unlink(missing_ok=True)
