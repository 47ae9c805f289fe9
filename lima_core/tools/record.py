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
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

import cv2
from tqdm import tqdm

from lima_core.data.bag import BagError, BagMessages
from lima_core.data.recording import Recording
from lima_core.data.recording_format import FACTS
from lima_core.data.recordings import Entry, append_entries, read_manifest
from lima_core.data.rig import Rig
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.recorder_parameters import RECORDING, chosen_triggers
from lima_core.runtime.triggers import features_of
from lima_core.tools.settings import given_settings

METADATA = "metadata.yaml"
STORAGE = (".mcap", ".db3")  # a bag whose METADATA is lost must not be passed over in silence


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
        out = options.out.resolve()
        done = {entry.source for entry in read_manifest(out) if (out / entry.recording / FACTS).is_file()}
        todo = [job for job in jobs if job.source not in done]
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} bags are recorded already")
        out.mkdir(parents=True, exist_ok=True)
        work = partial(record, out=out, settings=settings, rig=options.rig)
        run = _with_ray if options.engine == "ray" else partial(_with_processes, processes=options.processes)
        return _collect(run(work, todo), out, len(todo))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: interrupted; the same command goes on", file=sys.stderr)
        return 130


def find_jobs(given: Sequence[Path], settings: Resolved, rig: Path | None) -> list[Job]:
    """The bags below what was given. Raises BagError where there is none, or two would have one name."""
    content = {name: value for name, value in settings.values.items() if not name.startswith("disk.")}
    plain = json.dumps([content, rig.read_text() if rig else None], sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
    jobs: dict[str, Job] = {}
    for root in given:
        for folder in _bags(root):
            name = "__".join(folder.relative_to(root).parts) or folder.resolve().name
            if name in jobs:
                raise BagError(f"{folder} and {jobs[name].bag} would both be recorded as {name}; record them apart")
            files = [path.stat() for path in sorted(folder.iterdir()) if path.is_file()]
            size, changed = sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)
            jobs[name] = Job(folder.resolve(), name, (name, size, changed, digest))
    return list(jobs.values())


def _bags(root: Path) -> list[Path]:
    """Folders of bags, also of broken ones. Raises BagError where there is none."""
    if not root.is_dir():
        raise BagError(f"{root} is {'a file; name its folder' if root.exists() else 'not there'}")
    folders = {path.parent for path in root.rglob("*") if path.name == METADATA or path.suffix in STORAGE}
    if not folders:
        raise BagError(f"{root} holds no rosbag2 folder (with {METADATA}); `ros2 bag reindex` writes a missing one")
    return sorted(folders)


def record(
    job: Job, out: Path, settings: Resolved, rig: Path | None, progress: Callable[[], object] = lambda: None
) -> Outcome:
    """Records one bag, in a process of its own or on a machine of a cluster. The outcome says what was wrong."""
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
        entry = Entry(job.name, tuple(recording.counts.tolist()), size, job.source)
        return Outcome(job, entry, "", tuple(warnings))
    except (ValueError, OSError) as error:
        return Outcome(job, None, f"{job.bag}: {error}", tuple(warnings))
    except Exception as error:  # a message that breaks its decoder in a new way must not hold up the other bags
        return Outcome(job, None, f"{job.bag}: {type(error).__name__}: {error}", tuple(warnings))


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
    entries = read_manifest(out)
    frames = sum(sum(entry.sequences) for entry in entries)
    print(f"{len(entries)} recordings with {frames} frames in {out}; {len(problems)} bags could not be recorded")
    return 1 if problems else 0


def _with_processes(work: partial[Outcome], jobs: list[Job], processes: int) -> Iterator[Outcome]:
    """On this machine. A process that dies takes no other bag with it. Raises ValueError on processes < 1."""
    if processes < 1:
        raise ValueError(f"--processes {processes}: it takes at least one")
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            with tqdm(total=_messages(job.bag), desc=job.name, unit="message", leave=False) as bar:
                yield work(job, progress=bar.update)
        return
    waiting = deque(jobs)
    while waiting:
        suspects = yield from _pooled(work, waiting, processes)
        for job in suspects:  # one of them killed its process; it will again, alone
            if (yield from _pooled(work, deque([job]), 1)):
                yield Outcome(job, None, f"{job.bag}: its process died; there may be too little memory", ())


def _pooled(work: partial[Outcome], waiting: deque[Job], processes: int) -> Generator[Outcome, None, list[Job]]:
    """Takes jobs until none waits; where a process dies, returns those that were under way."""
    under_way: dict[Future, Job] = {}
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process)
    try:
        while waiting or under_way:
            while waiting and len(under_way) < processes:
                future = pool.submit(work, waiting[0])
                under_way[future] = waiting.popleft()
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                del under_way[future]
                yield outcome
    except BrokenProcessPool:
        return list(under_way.values())
    except BaseException:  # Ctrl-C: what is committed stays; the rest is done again
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return []


def _start_process() -> None:
    """A process for each core: one thread each, before torch is loaded; Ctrl-C is for the one that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)


def _messages(bag: Path) -> int | None:
    """How many messages there are; None where the bag is broken, which `record` reports."""
    try:
        return sum(BagMessages(bag).counts.values())
    except BagError:
        return None


def _with_ray(work: partial[Outcome], jobs: list[Job]) -> Iterator[Outcome]:
    """On a Ray cluster that sees the same folders, or on this machine where none is named. Raises RuntimeError."""
    try:
        import ray
    except ImportError as error:
        raise RuntimeError(f"--engine ray needs Ray ({error}): pip install '.[fleet]'") from error
    ray.init(log_to_driver=False)
    try:
        remote = ray.remote(work.func).options(max_retries=2)
        waiting = {remote.remote(job, **work.keywords): job for job in jobs}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                job = waiting.pop(done)
                try:
                    yield ray.get(done)
                except ray.exceptions.RayError as error:  # its process or machine died
                    yield Outcome(job, None, f"{job.bag}: {error}", ())
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
