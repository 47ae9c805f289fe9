"""The ledger balances, statistics are those of numpy's definition, silent topics are named with their neighbours."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima_core.runtime import health
from lima_core.runtime.health import ERROR, OK, WARN, Ledger, TopicWatch, silent_topics, statistics, status
from lima_core.runtime.parameters import PARAMETERS, ParameterError, resolve

CLOUD, IMAGE = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/CompressedImage"


@given(st.lists(st.sampled_from(["publish", "superseded", "bad_cloud", "open"]), max_size=50))
def test_every_sweep_is_in_exactly_one_bin(ends):
    ledger = Ledger()
    for end in ends:
        number = ledger.receive(1.0)
        if end == "publish":
            assert ledger.publish(number, 1.25) == 250.0
        elif end != "open":
            ledger.drop(number, end)
        if end != "open":
            assert not ledger.is_open(number)
            for close in (lambda n=number: ledger.drop(n, "again"), lambda n=number: ledger.publish(n, 2.0)):
                with pytest.raises(ValueError, match="closed before"):
                    close()
    account = ledger.account()
    assert account.received == len(ends) == account.published + sum(account.dropped.values()) + account.open
    assert account.published == ends.count("publish") and account.open == ends.count("open")
    assert account.dropped == {reason: ends.count(reason) for reason in set(ends) - {"publish", "open"}}


def test_latency_statistics():
    assert statistics([]) == {}
    assert statistics(range(101)) == {"p50": 50.0, "p95": 95.0, "max": 100.0}


def test_summary_is_json():
    ledger = Ledger(["CAM_FRONT"])
    ledger.drop(ledger.receive(0.0), "bad_cloud")
    ledger.note("CAM_FRONT", "missed.late")
    read = json.loads(json.dumps(health.summary(ledger.account())))
    assert read == {
        "received": 1,
        "published": 0,
        "dropped": {"bad_cloud": 1},
        "open": 0,
        "latency_ms": {},
        "cameras": {"CAM_FRONT": {"matched": 0, "missed.late": 1}},
    }


def test_status_levels():
    ledger = Ledger(["CAM_FRONT"])
    assert status(ledger.account()).level == WARN
    ledger.drop(ledger.receive(0.0), "bad_cloud")
    assert status(ledger.account()).level == ERROR
    ledger.publish(ledger.receive(0.0), 0.010)
    assert status(ledger.account()).level == WARN

    good = Ledger(["CAM_FRONT"])
    good.publish(good.receive(0.0), 0.010)
    good.drop(good.receive(0.0), "superseded")
    good.note("CAM_FRONT", "matched")
    one = status(good.account(), device="cpu")
    assert one.level == OK
    assert dict(one.values) == {
        "received": "2",
        "published": "1",
        "open": "0",
        "dropped": "1",
        "dropped.superseded": "1",
        "latency_ms.p50": "10.0",
        "latency_ms.p95": "10.0",
        "latency_ms.max": "10.0",
        "camera.CAM_FRONT": "matched 1",
        "device": "cpu",
    }
    assert status(good.account(), ["/x is silent"]).level == WARN


def test_a_wrong_topic_is_answered_by_the_right_ones():
    existing = [("/LIDAR_TOP", [CLOUD]), ("/lidar/points", [CLOUD]), ("/cam", [IMAGE]), ("/LIDAR_TPO", [CLOUD])]
    (line,) = silent_topics({"/LIDAR_TPO": CLOUD}, existing)
    assert "/LIDAR_TPO" in line and CLOUD in line
    assert "topics of this type: /LIDAR_TOP, /lidar/points" in line and "/cam" not in line
    assert "did you mean /LIDAR_TOP?" in line


def test_no_such_type_and_a_topic_of_another_type():
    (line,) = silent_topics({"/cam": IMAGE}, [("/cam", [IMAGE, "sensor_msgs/msg/Image"])])
    assert "no other topic has this type" in line and "somebody uses /cam as sensor_msgs/msg/Image" in line


def test_watch_reports_after_three_seconds_and_again_when_a_topic_falls_silent():
    watch = TopicWatch({"/a": CLOUD, "/info": "sensor_msgs/msg/CameraInfo"}, 3.0, now_s=10.0, once=["/info"])
    assert watch.report(12.9, []) == []
    assert len(watch.report(13.0, [])) == 2
    watch.hear("/a", 13.1)
    watch.hear("/info", 13.1)
    assert watch.report(14.0, []) == []
    assert watch.report(16.2, []) == ["/a has fallen silent"]


def test_parameters_take_what_is_given_and_say_where_it_came_from():
    resolved = resolve({"sync.timeout_ms": 20, "use_sim_time": True, "qos_overrides./a.depth": 3, "other.node": 1})
    assert resolved["sync.timeout_ms"] == 20.0 and type(resolved["sync.timeout_ms"]) is float
    assert resolved["device"] == "auto" and resolved.foreign == ("other.node",)
    assert "sync.timeout_ms = 20.0 (given)" in resolved.lines() and "device = 'auto' (default)" in resolved.lines()


@pytest.mark.parametrize(
    ("given_values", "words"),
    [
        ({"sync.timeout": 20.0}, ["sync.timeout_ms"]),
        ({"checkpont": "x"}, ["checkpoint"]),
        ({"device": "gpu"}, ["auto, cpu, cuda"]),
        ({"sync.timeout_ms": -1.0}, ["0 .. 2000"]),
        ({"sync.timeout_ms": float("nan")}, ["0 .. 2000"]),
        ({"sync.timeout_ms": "20"}, ["float", "'20'"]),
        ({"overlay.jpeg_quality": 85.5}, ["int"]),
        ({"autostart": 1}, ["bool"]),
        ({"overlay.jpeg_quality": True}, ["int", "True"]),
    ],
)
def test_wrong_parameters_are_refused(given_values, words):
    with pytest.raises(ParameterError) as error:
        resolve(given_values)
    assert next(iter(given_values)) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_the_yaml_file_holds_every_parameter_at_its_default():
    import yaml

    from lima_core.paths import config_dir

    def flat(tree, prefix=""):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    file = yaml.safe_load((config_dir() / "perception.yaml").read_text())["/**"]["ros__parameters"]
    assert dict(flat(file)) == {p.name: p.default for p in PARAMETERS}
    for name, value in flat(file):
        assert type(value) is type(next(p.default for p in PARAMETERS if p.name == name)), name


def test_an_odd_input_is_a_warning_and_a_complaint():
    ledger = Ledger()
    ledger.publish(ledger.receive(0.0), 0.1)
    facts = {"input.0": "intensity: set intensity_scale: 65535", "left_out.0": "no vision_msgs"}
    found = health.status(ledger.account(), (), **facts)
    assert (found.level, found.message) == (health.WARN, facts["input.0"])
    assert health.complaints(ledger.account(), (), facts) == [facts["input.0"]]
    assert health.complaints(ledger.account(), (), {}) == []
    assert health.status(ledger.account(), ()).level == health.OK


def test_complaints_name_the_cure():
    ledger = Ledger(["FRONT"])
    for reason in (health.BAD_CLOUD, "superseded", "no_set"):
        ledger.drop(ledger.receive(0.0), reason)
    for _ in range(3):
        ledger.note("FRONT", "missed.late")
    lines = health.complaints(ledger.account(), ["no message on /x"], {})
    assert lines[0] == "no message on /x"
    assert sum("1 of 3 clouds dropped" in line for line in lines) == 3
    assert "sync.timeout_ms" in lines[-1] and "FRONT" in lines[-1]


def test_a_network_that_hangs_is_an_error_and_an_old_failure_is_forgotten():
    ledger = Ledger()
    ledger.drop(ledger.receive(0.0), "bad_cloud")
    ledger.publish(ledger.receive(0.0), 0.1)
    before = ledger.account()
    assert health.status(before).level == health.WARN
    for _ in range(5):
        ledger.drop(ledger.receive(1.0), "superseded")
    found = health.status(ledger.account(), (), before)
    assert (found.level, found.message) == (health.ERROR, "none of 5 clouds was published lately")
    ledger.publish(ledger.receive(1.0), 1.1)
    assert health.status(ledger.account(), (), before).level == health.OK
