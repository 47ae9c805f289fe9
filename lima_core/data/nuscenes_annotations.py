"""Annotations of nuScenes as numpy columns: boxes in the world, velocities, numbers of returns, attributes.

Conventions: spec/datasets.md sections 2.1 and 2.3. `nuscenes_index.py` says what the columns are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lima_core.data import nuscenes_tables as tables
from lima_core.data.attributes import ATTRIBUTES, NO_ATTRIBUTE
from lima_core.data.nuscenes_tables import (
    LOST,
    NONE,
    Columns,
    NuScenesError,
    follow,
    links,
    read_columns,
    read_optional,
    read_table,
    strings,
)

MAX_VELOCITY_GAP_S = 1.5


def read_annotations(folder: Path, samples: dict[str, tables.Sample], keyframe: dict[str, int]) -> Columns:
    """Columns `categories` and `box*` of the index, in table order within each keyframe. Raises NuScenesError."""
    categories = read_optional(folder / "category.json", tables.Category)
    number = {row.token: i for i, row in enumerate(categories)}
    instances = read_optional(folder / "instance.json", tables.Instance)
    category = {row.token: number[row.category_token] for row in instances if row.category_token in number}
    attribute = _attribute_numbers(folder)
    path, sample = folder / "sample_annotation.json", {token: i for i, token in enumerate(samples)}
    given = (sample, category, attribute, folder)
    rows = read_columns(path, tables.Annotation, _reduce_annotations, given) if path.is_file() else None
    rows = _reduce_annotations([], given) if rows is None else rows
    stamp_us = np.array([row.timestamp for row in samples.values()], np.int64)[rows["sample"]]
    owner = np.array([keyframe.get(token, NONE) for token in samples], np.int64)[rows["sample"]]
    order = np.argsort(owner, kind="stable")
    order = order[np.searchsorted(owner[order], 0) :]  # those of samples in no scene come first
    return {
        "categories": strings([row.name for row in categories]),
        "box": np.hstack([rows["box"], _velocities(rows, stamp_us)])[order],
        "box_category": rows["category"][order],
        "box_points": rows["points"][order],
        "box_attribute": rows["attribute"][order if attribute else order[:0]],  # a table without rows says nothing
        "box_start": np.searchsorted(owner[order], np.arange(len(keyframe) + 1)),
    }


def _attribute_numbers(folder: Path) -> dict[str, int] | None:
    """Index into ATTRIBUTES by token, NO_ATTRIBUTE for those that are not nuScenes' own; None without the table."""
    path, number = folder / "attribute.json", {name: i for i, name in enumerate(ATTRIBUTES)}
    if not path.is_file():
        return None
    return {row.token: number.get(row.name, NO_ATTRIBUTE) for row in read_table(path, tables.Attribute)}


def _first_attributes(rows: list[tables.Annotation], number: dict[str, int] | None, folder: Path) -> np.ndarray:
    """(A,) uint8: the first attribute of each box."""
    if number is None:
        return np.full(len(rows), NO_ATTRIBUTE, np.uint8)
    first = [row.attribute_tokens[0] if row.attribute_tokens else "" for row in rows]
    try:
        return np.array([number[token] if token else NO_ATTRIBUTE for token in first], np.uint8)
    except KeyError as error:
        raise NuScenesError(
            f"{folder}/sample_annotation.json names attribute {error}, which attribute.json lacks; unpack both again"
        ) from error


def _reduce_annotations(rows: list[tables.Annotation], given: tuple) -> Columns:
    sample, category, attribute, folder = given
    tokens = [row.token for row in rows]
    prev, prev_far = links(tokens, [row.prev for row in rows])
    following, following_far = links(tokens, [row.next for row in rows])
    try:
        samples, categories = [sample[row.sample_token] for row in rows], [category[row.instance_token] for row in rows]
    except KeyError as error:
        raise NuScenesError(
            f"{folder}/sample_annotation.json names a sample or an instance, {error}, that the other tables lack or "
            "give no category; unpack the metadata again"
        ) from error
    numbers = np.array([row.translation + row.size + row.rotation for row in rows], np.float64)
    return {
        "token": strings(tokens),
        "prev": prev,
        "prev_far": prev_far,
        "next": following,
        "next_far": following_far,
        "sample": np.array(samples, np.int64),
        "category": np.array(categories, np.uint16),
        "points": np.array([row.num_lidar_pts + row.num_radar_pts for row in rows], np.int32),
        "attribute": _first_attributes(rows, attribute, folder),
        "box": numbers.reshape(-1, 10),
    }


def _velocities(rows: Columns, stamp_us: np.ndarray) -> np.ndarray:
    """(A, 3) m/s in the world: centred difference, one-sided at the ends, nan where unknown (`box_velocity`)."""
    own = np.arange(len(rows["token"]))
    before, after = (follow(rows["token"], rows[name], rows[f"{name}_far"], LOST) for name in ("prev", "next"))
    before, after = np.where(before == LOST, own, before), np.where(after == LOST, own, after)
    seconds = (stamp_us[after] - stamp_us[before]) / 1e6
    limit = MAX_VELOCITY_GAP_S * np.where((before != own) & (after != own), 2, 1)
    known = (seconds > 0) & (seconds <= limit)
    moved = rows["box"][after, :3] - rows["box"][before, :3]
    return np.where(known[:, None], moved / np.where(known, seconds, 1)[:, None], np.nan)
