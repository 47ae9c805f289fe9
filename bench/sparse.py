"""Sparse convolution against spconv, in one run, interleaved: `python bench/sparse.py [--json FILE] [--only PART ...]`.

forward   MinkUNet-34, batch 1, batch norm folded on both sides: ours and spconv's own CPU forward; one thread
training  in the same rounds: our forward + backward against spconv's forward (its backward needs a GPU)
memory    what a process needs beyond what it held before, each engine in a process of its own
scaling   10k to 200k points; threads: one against two
cuda      torch and spconv backend, fp32 and fp16, forward and training, batch 1 and 4 (where there is a GPU)

Clouds: real sweeps of the folder LIMA_TEST_DATA (default ../shared/data; left out where it is absent) and a simulated
32-beam sweep. `roofline` is the share of what matrix products of 1024 x 1024 reach in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from spconv_minkunet import SpconvMinkUNet

from lima_core.data.synthetic.street import Street
from lima_core.files import write_whole
from lima_core.models.minkunet import MODELS, ConvNorm, MinkUNet
from lima_core.models.voxelize import VoxelConfig, network_input, voxelize
from lima_core.sparse.conv import use_backend
from lima_core.sparse.tensor import SparseTensor
from lima_core.training.allocator import keep_freed_memory

MODEL = "minkunet34"
REPEATS, WARM_UP = 7, 2
CYLINDER, CUBE_10, CUBE_5 = (
    VoxelConfig("cylinder", (0.1, 1.0, 0.1)),
    VoxelConfig("cartesian", (0.1, 0.1, 0.1)),
    VoxelConfig("cartesian", (0.05, 0.05, 0.05)),
)
PARTS = ("forward", "memory", "scaling", "threads", "cuda")


def main() -> None:
    """Prints one line per measurement; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--memory-of", choices=("ours", "spconv", "training"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.memory_of:
        print(megabytes(options.memory_of))
        return
    keep_freed_memory()  # for both: large tensors are not mapped anew at every layer
    result: dict[str, object] = {"torch": torch.__version__, "cpu": cpu_name()}
    if "forward" in options.only:
        result["forward"] = forward()
        real = [row for row in result["forward"] if row["real"]]
        result["speedup_vs_spconv_cpu"] = (real or result["forward"])[0]["speedup"]
        print(f"speedup_vs_spconv_cpu {result['speedup_vs_spconv_cpu']:.3f}")
    for part in (memory, scaling, threads, cuda):
        if part.__name__ in options.only:
            result[part.__name__] = part()
    if options.json:
        print(f"wrote {write_whole(options.json, json.dumps(result, indent=2))}")


def forward() -> list[dict]:
    """Forward and training step on every cloud."""
    ours, peer, learner = engines()
    rows = []
    for name, (points, voxels) in clouds().items():
        features, coords = voxelized(points, voxels)
        square = torch.rand(1024, 1024)
        seconds = interleaved(
            {
                "ours": lambda f=features, c=coords: ours(SparseTensor(f, c)),
                "spconv": lambda f=features, c=coords: peer(f, c),
                "training": lambda f=features, c=coords: train_step(learner, SparseTensor(f, c)),
                "gemm": lambda s=square: s @ s,
            }
        )
        training = seconds["training"]
        difference = (ours(SparseTensor(features, coords)).features - peer(features, coords)).abs().max()
        gflop = active_gflop(ours, SparseTensor(features, coords))
        row = {
            "cloud": name, "real": not name.startswith("simulated"), "points": len(points), "voxels": len(coords),
            "gflop": gflop, "ours_s": seconds["ours"], "spconv_s": seconds["spconv"],
            "speedup": seconds["spconv"] / seconds["ours"], "training_s": training,
            "training_per_spconv_forward": training / seconds["spconv"],
            "roofline": gflop / seconds["ours"] * seconds["gemm"] / (2 * 1024**3 / 1e9),
            "max_difference": float(difference),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:30s} {row['points']:6d} points {row['voxels']:6d} voxels {gflop:6.1f} GFLOP  "
            f"ours {row['ours_s']:.3f} s  spconv {row['spconv_s']:.3f} s  speedup {row['speedup']:.3f}  "
            f"roofline {row['roofline']:.2f}  training {training:.3f} s = "
            f"{row['training_per_spconv_forward']:.2f} x spconv's forward  difference {row['max_difference']:.1e}",
            flush=True,
        )
    return rows


def memory() -> dict[str, float]:
    """Peak memory in MB of one forward pass and of one training step."""
    found = {}
    for what in ("ours", "spconv", "training"):
        command = [sys.executable, __file__, "--memory-of", what]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[what] = float(output.split()[-1])
    print("peak memory beyond network and input, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in found.items()))
    return found


def megabytes(what: str) -> float:
    """Peak of this process's resident memory during one run on the first cloud, beyond what it held before. Linux."""
    ours, peer, learner = engines()
    features, coords = voxelized(*next(iter(clouds().values())))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    with torch.set_grad_enabled(what == "training"):
        if what == "ours":
            ours(SparseTensor(features, coords))
        elif what == "spconv":
            peer(features, coords)
        else:
            train_step(learner, SparseTensor(features, coords))
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """MB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def scaling() -> list[dict]:
    """Forward passes on simulated sweeps of several frames moved into one, thinned to a number of points."""
    ours, peer, _ = engines()
    whole = accumulated(7)
    rows = []
    for count in (10_000, 30_000, 100_000, 200_000):
        chosen = np.random.default_rng(0).choice(len(whole), count, replace=False)
        features, coords = voxelized(whole[np.sort(chosen)], CUBE_10)
        seconds = interleaved(
            {
                "ours": lambda f=features, c=coords: ours(SparseTensor(f, c)),
                "spconv": lambda f=features, c=coords: peer(f, c),
            },
            3,
        )
        row = {"points": count, "voxels": len(coords), **seconds, "speedup": seconds["spconv"] / seconds["ours"]}
        rows.append(row)
        print(f"{count:6d} points {len(coords):6d} voxels  ours {row['ours']:.3f} s  speedup {row['speedup']:.3f}")
    return rows


def threads() -> dict[str, float]:
    """Wall time with one thread over wall time with two."""
    ours, peer, _ = engines()
    features, coords = voxelized(*next(iter(clouds().values())))
    found: dict[str, float] = {}
    for number in (1, 2):
        torch.set_num_threads(number)
        tasks = {"ours": lambda: ours(SparseTensor(features, coords)), "spconv": lambda: peer(features, coords)}
        found |= {f"{name}_{number}": s for name, s in interleaved(tasks, clock=time.perf_counter).items()}
    torch.set_num_threads(1)
    found |= {f"{name}_gain": found[f"{name}_1"] / found[f"{name}_2"] for name in ("ours", "spconv")}
    print("two threads against one: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def cuda() -> list[dict]:
    """Both backends on a GPU, milliseconds."""
    if not torch.cuda.is_available():
        print("cuda: no GPU")
        return []
    rows = []
    clouds_ = [voxelized(points, voxels) for points, voxels in clouds().values()]
    for scenes in (1, 4):
        batch = together([clouds_[i % len(clouds_)] for i in range(scenes)])
        for precision in (torch.float32, torch.float16):
            for backend in ("torch", "spconv"):
                network = use_backend(MODELS[MODEL]().cuda(), backend)
                with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
                    row = {"backend": backend, "precision": str(precision), "scenes": scenes}
                    row["training_ms"] = on_gpu(lambda n=network, b=batch: train_step(n, SparseTensor(*b)))
                    network.eval()
                    with torch.inference_mode():
                        row["forward_ms"] = on_gpu(lambda n=network, b=batch: n(SparseTensor(*b)))
                rows.append(row)
                print(row, flush=True)
    return rows


def on_gpu(task: Callable[[], object]) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(WARM_UP + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        task()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[WARM_UP:])


def engines() -> tuple[MinkUNet, SpconvMinkUNet, MinkUNet]:
    """Our network and spconv's with the same weights, folded, and one to train."""
    ours = MODELS[MODEL]().eval()
    for module in ours.modules():
        if isinstance(module, ConvNorm):
            module.fold()
    return ours.requires_grad_(False), SpconvMinkUNet(ours).eval().requires_grad_(False), MODELS[MODEL]()


def train_step(network: MinkUNet, x: SparseTensor) -> None:
    """Forward and backward, without an optimiser."""
    network.zero_grad(set_to_none=True)
    with torch.inference_mode(False), torch.enable_grad():
        network(x).features.float().square().mean().backward()


def interleaved(
    tasks: dict[str, Callable[[], object]], repeats: int = REPEATS, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each task, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    with torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            for name, task in tasks.items():
                start = clock()
                task()
                times[name].append(clock() - start)
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def active_gflop(network: MinkUNet, x: SparseTensor) -> float:
    """Multiplications and additions of the pairs that exist, in 1e9."""
    flops = []

    def count(module, arguments, output):
        source = arguments[0]
        if hasattr(module, "stride"):
            kernel_map, _ = arguments[-1].maps.strided(module.kernel, module.stride, module.padding)
            pairs = len(kernel_map.source)
        else:
            pairs = len(source) + len(source.maps.submanifold(module.kernel[0]).source)
        flops.append(2 * pairs * module.weight.shape[0] * module.weight.shape[-1])

    hooks = [m.register_forward_hook(count) for m in network.modules() if hasattr(m, "backend")]
    network(x)
    for hook in hooks:
        hook.remove()
    return sum(flops) / 1e9


def clouds() -> dict[str, tuple[np.ndarray, VoxelConfig]]:
    """(N, 4) points and voxels by name; real ones first, where they are."""
    data = Path(os.environ.get("LIMA_TEST_DATA", "../shared/data"))
    found = {}
    for path in sorted((data / "nus_tiny/samples/LIDAR_TOP").glob("*.bin")):
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :4] * np.float32([1, 1, 1, 1 / 255])
        found |= {
            "nuScenes, cylinder 0.1": (points, CYLINDER),
            "nuScenes, cube 0.1": (points, CUBE_10),
            "nuScenes, cube 0.05": (points, CUBE_5),
        }
    for path in sorted((data / "semantickitti/sequences/08/velodyne").glob("*.bin")):
        found["SemanticKITTI, cube 0.05"] = (np.fromfile(path, np.float32).reshape(-1, 4), CUBE_5)
    return found | {"simulated 32 beams, cube 0.1": (Street(0, 1, cameras=False)[0].points, CUBE_10)}


def accumulated(frames: int) -> np.ndarray:
    """(N, 4) points of several sweeps of a street in the LiDAR frame of the first."""
    street = Street(0, 5 * frames, cameras=False)
    sweeps = [street[5 * i] for i in range(frames)]
    first_from_world = np.linalg.inv(sweeps[0].world_from_lidar)
    moved = []
    for sweep in sweeps:
        first_from_lidar = first_from_world @ sweep.world_from_lidar
        xyz = sweep.points[:, :3] @ first_from_lidar[:3, :3].T + first_from_lidar[:3, 3]
        moved.append(np.concatenate([xyz, sweep.points[:, 3:]], 1).astype(np.float32))
    return np.concatenate(moved)


def voxelized(points: np.ndarray, config: VoxelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (M, 4) and coords (M, 4) of a cloud."""
    cloud = torch.from_numpy(np.ascontiguousarray(points, np.float32))
    voxels = voxelize(cloud, config)
    return network_input(cloud[voxels.first_point]), voxels.coords


def together(scenes: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes as one batch on the GPU."""
    coords = [c + c.new_tensor([i, 0, 0, 0]) for i, (_, c) in enumerate(scenes)]
    return torch.cat([f for f, _ in scenes]).cuda(), torch.cat(coords).cuda()


def cpu_name() -> str:
    """From /proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
