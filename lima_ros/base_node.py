"""What our lifecycle nodes share: checked parameters, transitions that say why they fail, inputs, warnings, `run`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from lima_core.runtime import parameters
from lima_ros import convert
from lima_ros.ports_node import sensor_qos, subscribe

REPEAT_WARNING_S = 5.0


class BaseNode(LifecycleNode):
    """A lifecycle node; a transition that fails says why in the log and in `problem`, and undoes itself.

    `settings` are the checked parameters of `table`. Subclasses call `attempt` in their transitions, and implement
    `release`, which undoes activate and configure as far as they came, and `check_change`.
    """

    def __init__(self, name: str, table: tuple[parameters.Parameter, ...]) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True)
        self._table = {parameter.name: parameter for parameter in table}
        self.settings = self._declare(table)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # timers must not follow a bag's clock
        self._inputs: list[Callable[[], object]] = []  # how to destroy what `activate` made
        self._warned_s: dict[str, float] = {}
        self._closed = False
        self.configured = self.active = False
        self.problem = ""

    def release(self) -> None:
        """Gives everything back."""
        raise NotImplementedError

    def check_change(self, parameter: parameters.Parameter, value: parameters.Value) -> None:
        """Raises ParameterError where a parameter cannot take a (checked) value while the node is configured."""
        raise NotImplementedError

    def changed(self, names: set[str]) -> None:
        """Parameters of these names have new values, which are in `settings`."""

    def take_parameters(self) -> parameters.Resolved:
        """Reads all of them anew into `settings`, and returns these. Raises ParameterError."""
        given = {name: self.get_parameter(name).value for name in self._table}
        self.settings = parameters.resolve(given, self._table.values())
        return self.settings

    def start(self) -> bool:
        """Configures where needed and activates; False, with `problem`, where that fails."""
        if not self.configured and self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return False
        return self.active or self.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def shutdown(self) -> None:
        """Finishes what runs and gives everything back; may be called again."""
        if not self._closed:
            self._closed = True
            self.release()
            self.destroy_node()

    def attempt(self, change: Callable[[], None], wanted: str, undo: Callable[[], None]) -> TransitionCallbackReturn:
        """Makes a change of state, or undoes it and says why in the log and in `problem`."""
        self.problem = ""
        try:
            change()
        except Exception as error:  # all of them: rclpy would swallow the others without a word
            expected = isinstance(error, (ValueError, OSError, RuntimeError))
            self.problem = str(error) if expected else f"{type(error).__name__}: {error}"
            self.get_logger().error(f"cannot be {wanted}: {self.problem}")
            undo()
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def warn(self, text: str) -> None:
        """Logs a warning, each kind (what stands before its colon) at most every few seconds."""
        # not rclpy's throttle: it would take all that is said from here for one warning, and swallow the second kind
        kind, now_s = text.partition(":")[0], time.monotonic()
        if now_s - self._warned_s.get(kind, -REPEAT_WARNING_S) >= REPEAT_WARNING_S:
            self._warned_s[kind] = now_s
            self.get_logger().warning(text)

    def listen(self, kind: type, topic: str, hear: Callable[[str, Any], None], qos: QoSProfile | None = None) -> str:
        """Subscribes until `stop_listening`; `hear` gets the resolved topic, which is returned, and the message."""

        def heard(msg: Any) -> None:
            hear(name, msg)

        subscription = subscribe(self, kind, topic, heard, qos or sensor_qos())
        name = subscription.topic_name
        self._inputs.append(partial(self.destroy_subscription, subscription))
        return name

    def timer(self, period_s: float, handle: Callable[[], None]) -> Any:
        """A timer of real time until `stop_listening`."""
        timer = self.create_timer(period_s, handle, clock=self._steady)
        self._inputs.append(partial(self.destroy_timer, timer))
        return timer

    def stop_listening(self) -> None:
        """Destroys what `listen` and `timer` made."""
        self.active = False
        for destroy in self._inputs:
            destroy()
        self._inputs.clear()

    def _on_set_parameters(self, given: list[RosParameter]) -> SetParametersResult:
        """All of a call or none."""
        ours = [(self._table[p.name], p.value) for p in given if p.name in self._table]
        try:
            for parameter, value in ours:
                checked = parameter.check(value)
                if self.configured:
                    self.check_change(parameter, checked)
        except parameters.ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for parameter, value in ours:
            self.settings.change(parameter.name, parameter.check(value))
        self.changed({parameter.name for parameter, _ in ours})
        return SetParametersResult(successful=True)

    def _declare(self, table: tuple[parameters.Parameter, ...]) -> parameters.Resolved:
        """Declares every parameter with its checked value and logs it with its source."""
        given = {name: p.value for name, p in self.get_parameters_by_prefix("").items()}
        resolved = parameters.resolve(given, table)
        for parameter in table:
            if self.has_parameter(parameter.name):
                self.undeclare_parameter(parameter.name)
            value = resolved[parameter.name]
            self.declare_parameter(parameter.name, value, convert.descriptor(parameter), ignore_override=True)
        self.get_logger().info("parameters:\n  " + "\n  ".join(resolved.lines()))
        if resolved.foreign:
            self.get_logger().warning(f"not parameters of this node: {', '.join(resolved.foreign)}")
        return resolved


def type_name(kind: type) -> str:
    """A message class -> sensor_msgs/msg/Image."""
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def run(make: Callable[[], BaseNode], name: str, args: list[str] | None = None) -> int:
    """Runs a node until SIGINT or SIGTERM; 0, or 2 with the reason on stderr when it cannot work."""
    # an event and no KeyboardInterrupt: that could strike between a sweep's reception and its place in a queue
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # not rclpy's handlers: they invalidate the context under the sweep that is being published
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = make()
        if node.settings["autostart"] and not node.start():
            print(f"{name}: {node.problem}", file=sys.stderr)
            return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    else:
        _spin(node, stop)
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not meet the interpreter's own handlers
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.shutdown()
        rclpy.try_shutdown()


def _spin(node: LifecycleNode, stop: threading.Event) -> None:
    """Runs callbacks in this thread until `stop` is set or the context ends."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    finally:
        executor.remove_node(node)
        executor.shutdown()
