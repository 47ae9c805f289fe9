"""Packaging of lima: one ament_python package `lima_ros` that installs lima_core and lima_ros.

All metadata is here and none in pyproject.toml: older setuptools drop the console scripts under colcon otherwise.
"""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "lima_ros"
ROS_MESSAGES = "5.5.1"
SHARE = f"share/{PACKAGE}"


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """data_files entries that copy a folder below share/lima_ros, as it is."""
    folders = sorted({path.parent for path in Path(folder).rglob("*.*") if path.parent.name != "__pycache__"})
    return [(f"{SHARE}/{d}", sorted(str(f) for f in d.iterdir() if f.is_file())) for d in folders]


setup(
    name=PACKAGE,
    version="0.1.0",
    description="LiDAR perception learned from a robot's own unlabelled drives (LiMA), with ROS 2 nodes",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="lima developers",
    maintainer="lima developers",
    maintainer_email="lima@example.com",
    packages=find_packages(include=["lima_core", "lima_core.*", "lima_ros", "lima_ros.*"]),
    package_data={"lima_core": ["assets/*.safetensors"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (SHARE, ["package.xml"]),
        *tree("launch"),
        *tree("config"),
        # `ros2 run` and `ros2 launch` look here; console scripts go to bin/ under pip
        (f"lib/{PACKAGE}", sorted(glob("scripts/*"))),  # noqa: PTH207
    ],
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=[
        "setuptools",
        "torch>=2.4",
        "torchvision>=0.19",  # timm needs it
        "timm>=1.0.9",
        "numpy>=1.23",
        "opencv-python-headless>=4.5",
        "pyyaml",
        "msgspec>=0.19",  # nuScenes' tables, 2.6 GB of JSON
        "safetensors>=0.4",
        "lightning-fabric>=2.4",
        "tensorboard",
        "jsonargparse>=4.33",
        "matplotlib>=3.5",
        "tqdm",
        "rosbags>=0.10",
        # the simulated street; there are no wheels for 64-bit Arm, where lima runs without the simulator
        "embreex>=2.17.7; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    ],
    extras_require={
        # rclpy with Fast DDS from PyPI, for machines without a ROS 2 installation; never beside one
        "ros": [
            "ros-rclpy[fastrtps]==9.1.2",
            "ros-rosgraph-msgs==2.3.0",
            *(
                f"ros-{name}=={ROS_MESSAGES}"
                for name in (
                    "std-msgs",
                    "std-srvs",
                    "geometry-msgs",
                    "sensor-msgs",
                    "nav-msgs",
                    "diagnostic-msgs",
                    "visualization-msgs",
                )
            ),
        ],
        "cuda120": ["spconv-cu120; python_version < '3.12'"],
        "cuda126": ["spconv-cu126; python_version >= '3.12'"],
        "fleet": ["ray>=2.9"],  # python -m lima_core.tools.record --engine ray
        "waymo": ["pyarrow>=14"],  # Waymo Open Dataset v2 is parquet
        # the official evaluators; they pin numpy < 2, so they want an environment of their own
        "eval": ["nuscenes-devkit>=1.2.0"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "codespell",
            "colcon-common-extensions",
            "setuptools",
            "shapely",  # rotated IoU and NMS are compared with it
            "trimesh",
            "pyarrow>=14",
            # the CPU build, for tests and benchmarks: its forward pass is the peer of ours
            "spconv; platform_machine == 'x86_64' and python_version < '3.14'",
        ],
    },
    entry_points={
        "console_scripts": [
            "lima-perception = lima_ros.perception_node:main",
            "lima-player = lima_ros.player_node:main",
            "lima-evaluator = lima_ros.evaluator_node:main",
            "lima-recorder = lima_ros.recorder_node:main",
            "lima-demo = lima_ros.demo:main",
        ]
    },
)
