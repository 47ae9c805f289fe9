"""Bags -> recordings that LiMA pretrains on as they are: no ROS, all cores, interrupted and repeated at will.

python -m lima_core.tools.record BAG... --out DIR                            rig by what the bags themselves say
python -m lima_core.tools.record /data/fleet --out DIR --rig my_rig.yaml --params-file config/recorder.yaml
python -m lima_core.tools.record /data/fleet --out DIR --engine ray          the same on a Ray cluster (RAY_ADDRESS)

A BAG is a rosbag2 folder, or a folder with rosbag2 folders at any depth. Each becomes a recording in DIR, and a line in
DIR/recordings.jsonl once it is finished; finished ones are passed over, an interrupted one goes on, a broken bag holds
up no other. Ray rather than Dask: the work is independent calls with side effects on a shared disk, not arrays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

from tqdm import tqdm

from lima_core.data.bag import BagError, BagMessages
from lima_core.data.recording import Recording
from lima_core.data.recordings import Entry, append_entries, read_manifest, sequence_counts
from lima_core.data.rig import Rig
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.recorder_parameters import RECORDING, chosen_triggers
from lima_core.runtime.triggers import features_of
from lima_core.tools.settings import given_settings

METADATA = "metadata.yaml"


@dataclass(frozen=True)
class Job:
    """One bag to record: its folder, the recording's name below `out`, and what it is identified by."""

    bag: Path
    name: str
    source: tuple[str, int, int, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a bag: its line for the manifest, or what was wrong; `warnings` either way."""

    job: Job
    entry: Entry | None
    problem: str
    warnings: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where a bag could not be recorded, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m lima_core.tools.record", description=__doc__.split("\n")[0])
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings and their manifest")
    parser.add_argument("--rig", type=Path, help="rig file (default: what each bag itself says)")
    parser.add_argument("--params-file", type=Path, help="parameter file of the recorder, as config/recorder.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the recorder")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    options = parser.parse_args(argv)
    try:
        settings = given_settings(RECORDING, options.params_file, options.set)
        chosen_triggers(settings)
        if options.rig:
            Rig.load(options.rig)
        jobs = find_jobs(options.bags, settings, options.rig)
        done = {entry.source for entry in read_manifest(options.out.resolve())}
        todo = [job for job in jobs if job.source not in done]
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} bags are recorded already")
        options.out.mkdir(parents=True, exist_ok=True)
        work = partial(record, out=options.out.resolve(), settings=settings, rig=options.rig)
        run = _with_ray if options.engine == "ray" else partial(_with_processes, processes=options.processes)
        return _collect(run(work, todo), options.out, len(todo))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: interrupted; the same command goes on", file=sys.stderr)
        return 130


def find_jobs(given: Sequence[Path], settings: Resolved, rig: Path | None) -> list[Job]:
    """The bags below what was given. Raises BagError where there is none, or two would have one name."""
    plain = json.dumps([settings.values, rig.read_text() if rig else None], sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
    jobs: dict[str, Job] = {}
    for root in given:
        folders = sorted(path.parent for path in root.rglob(METADATA))
        if not folders:
            raise BagError(f"{root} holds no rosbag2 folder (with {METADATA}); `ros2 bag reindex` writes a missing one")
        for folder in folders:
            below = folder.relative_to(root).parts
            name = "__".join(below) or folder.resolve().name
            if name in jobs:
                raise BagError(f"{folder} and {jobs[name].bag} would both be recorded as {name}; record them apart")
            files = [path.stat() for path in sorted(folder.iterdir()) if path.is_file()]
            size, changed = sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)
            jobs[name] = Job(folder.resolve(), name, (name, size, changed, digest))
    return list(jobs.values())


def record(
    job: Job, out: Path, settings: Resolved, rig: Path | None, progress: Callable[[], object] = lambda: None
) -> Outcome:
    """Records one bag; runs in a process of its own, or on a machine of a cluster."""
    warnings: dict[str, None] = {}
    try:
        record_bag(
            job.bag,
            out / job.name,
            settings,
            Rig.load(rig) if rig else None,
            features_of(settings),
            lambda text: warnings.setdefault(text),
            progress,
        )
        recording = Recording(out / job.name)
        os.sync()  # the manifest promises that it is there
        size = sum(path.stat().st_size for path in recording.root.rglob("*") if path.is_file())
        entry = Entry(job.name, sequence_counts(recording), size, job.source)
        return Outcome(job, entry, "", tuple(warnings))
    except (ValueError, OSError) as error:
        return Outcome(job, None, f"{job.bag}: {error}", tuple(warnings))


def _collect(outcomes: Iterator[Outcome], out: Path, total: int) -> int:
    """Writes the manifest as bags are finished, and says what was wrong; the exit status."""
    problems = []

    def finished() -> Iterator[Entry]:
        for outcome in tqdm(outcomes, total=total, desc="recording", unit="bag", disable=total < 2):
            for warning in outcome.warnings:
                tqdm.write(f"{outcome.job.name}: {warning}")
            if outcome.entry is None:
                problems.append(outcome.problem)
                tqdm.write(f"record: {outcome.problem}", file=sys.stderr)
            else:
                yield outcome.entry

    append_entries(out, finished())
    entries = read_manifest(out.resolve())
    frames = sum(sum(entry.sequences) for entry in entries)
    print(f"{len(entries)} recordings with {frames} frames in {out}; {len(problems)} bags could not be recorded")
    return 1 if problems else 0


def _with_processes(work: Callable[[Job], Outcome], jobs: list[Job], processes: int) -> Iterator[Outcome]:
    """On this machine."""
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            with tqdm(total=_messages(job.bag), desc=job.name, unit="message", leave=False) as bar:
                yield work(job, progress=bar.update)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():  # what is committed stays; the rest is done again
                process.terminate()
            raise


def _messages(bag: Path) -> int | None:
    """How many messages there are; None where the bag is broken, which `record` reports."""
    try:
        return sum(BagMessages(bag).counts.values())
    except BagError:
        return None


def _with_ray(work: Callable[[Job], Outcome], jobs: list[Job]) -> Iterator[Outcome]:
    """On a Ray cluster that sees the same folders, or on this machine where none is named. Raises RuntimeError."""
    try:
        import ray
    except ImportError as error:
        raise RuntimeError(f"--engine ray needs Ray ({error}): pip install '.[fleet]'") from error
    ray.init(log_to_driver=False)
    remote = ray.remote(work.func).options(max_retries=2)
    waiting = [remote.remote(job, **work.keywords) for job in jobs]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)


if __name__ == "__main__":
    sys.exit(main())
