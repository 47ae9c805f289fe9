"""Clouds beside the segmented one: classes filtered out, features as colours, similarity to a clicked point. No rclpy.

Every cloud has the header of its input; features are those of `Predictor.features`, nan where the network does not
look. `heat` and SPREAD are imported where they are used: their modules load torch, which the node does later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lima_core.data.ros_cloud import CloudPoints, PackedCloud, pack_cloud, pack_rgb, read_cloud
from lima_core.runtime.messages import Messages

UNKNOWN = (90, 90, 90)  # RGB of points without a feature
FOLLOW = 0.05  # share of a new sweep in what the colours are made from: they follow within about 20 sweeps
SAMPLE = 4000  # features of a sweep, evenly chosen, that mean and covariance are made from
FEWEST = 100  # known points below which a sweep says little about the features
RIDGE = 1e-6  # keeps the basis where it is in directions that do not vary; unit features have variances up to 1
LEAST_DEVIATION = 1e-3  # noise around a constant must not fill the range of colours


def filtered_message(msg: Any, keep: np.ndarray, messages: Messages) -> Any:
    """PointCloud2 without the points whose `keep` (N,) bool is False: same header, fields, bytes and byte order.

    Points lie in one row, in their order; rows lose their padding. Raises CloudError when the cloud contradicts
    itself, ValueError when `keep` does not fit it.
    """
    read_cloud(msg)  # raises unless every point lies inside the data
    size = msg.width * msg.height
    if keep.shape != (size,) or keep.dtype != bool:
        raise ValueError(f"keep is {keep.shape} {keep.dtype}, the cloud needs ({size},) bool")
    kept = b""
    if size:
        point = np.dtype((np.void, msg.point_step))
        table = np.ndarray((msg.height, msg.width), point, msg.data, 0, (msg.row_step, msg.point_step))
        kept = table[keep.reshape(table.shape)].tobytes()
    fields = tuple((f.name, f.offset, f.datatype, f.count) for f in msg.fields)
    out = messages.cloud_of(PackedCloud(fields, msg.point_step, kept, int(keep.sum())), msg.header)
    out.is_bigendian, out.is_dense = msg.is_bigendian, msg.is_dense
    return out


class FeatureColors:
    """Features as colours that do not flicker: three directions of large variance, slowly followed over the sweeps.

    Mean and covariance of the features' directions are running means. Each sweep moves the basis by one step of
    orthogonal iteration, with the orthonormal factor nearest to it: a continuous function of the covariance, so that
    no component flips its sign, changes place with another or turns in a plane of equal variances.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all; the next sweep gives the basis."""
        self._mean: np.ndarray | None = None

    def rgb(self, features: np.ndarray) -> np.ndarray:
        """(N, C) float features of a sweep, nan rows where unknown -> (N, 3) uint8, UNKNOWN there; follows the sweep.

        The first component is red. Raises ValueError when C is below 3 or not that of the sweeps before.
        """
        from lima_core.viz.features import SPREAD

        if features.shape[1] < 3 or (self._mean is not None and features.shape[1] != len(self._mean)):
            before = "at least 3" if self._mean is None else f"{len(self._mean)} as before; call reset()"
            raise ValueError(f"features have {features.shape[1]} columns; colours need {before}")
        colors = np.full((len(features), 3), UNKNOWN, np.uint8)
        known = np.isfinite(features).all(1)
        if not known.any():
            return colors
        directions = _directions(features[known])
        self._follow(directions[:: -(-len(directions) // SAMPLE)].astype(np.float64))
        components = (directions @ self._basis - self._mean @ self._basis) / (SPREAD * self._deviation)
        colors[known] = (127.5 * (components.clip(-1, 1) + 1)).round()
        return colors

    def _follow(self, directions: np.ndarray) -> None:
        """Takes the (N, C) float64 unit features of a sweep into account."""
        mean = directions.mean(0)
        moment = directions.T @ directions / len(directions)
        if self._mean is None:
            self._mean, self._moment, self._basis = mean, moment, _principal(moment - np.outer(mean, mean))
        elif len(directions) >= FEWEST:
            self._mean = self._mean + FOLLOW * (mean - self._mean)
            self._moment = self._moment + FOLLOW * (moment - self._moment)
        covariance = self._moment - np.outer(self._mean, self._mean)
        left, _, right = np.linalg.svd(covariance @ self._basis + RIDGE * self._basis, full_matrices=False)
        self._basis = left @ right
        variance = np.einsum("ck,cd,dk->k", self._basis, covariance, self._basis)
        self._deviation = np.sqrt(variance.clip(LEAST_DEVIATION**2))


def features_message(
    cloud: CloudPoints, features: np.ndarray, colors: FeatureColors, header: Any, messages: Messages
) -> Any:
    """PointCloud2 x, y, z, rgb: the (N, C) features of the points as colours, which follow this sweep.

    Raises ValueError when features and points differ in number, or as `FeatureColors.rgb`.
    """
    _check_rows(cloud, features)
    return _colored(cloud, {}, colors.rgb(features), header, messages)


def similarity_message(
    cloud: CloudPoints, features: np.ndarray, query_row: int, header: Any, messages: Messages
) -> Any:
    """PointCloud2 x, y, z, similarity, rgb: cosine of each point's (C,) feature to that of the point `query_row`.

    From blue (the lowest twentieth) to red (1); similarity is nan and the colour UNKNOWN where there is no feature.
    Raises ValueError when the query has none, is no point, or features and points differ in number.
    """
    from lima_core.viz.similarity import LOWEST_PERCENT, heat

    _check_rows(cloud, features)
    if not 0 <= query_row < len(features):
        raise ValueError(f"query point {query_row} is not one of the {len(features)} points")
    known = np.isfinite(features).all(1)
    if not known[query_row]:
        where = ", ".join(f"{value:.1f}" for value in cloud.points[query_row, :3])
        raise ValueError(f"the network does not look at the point at {where} m: it has no feature; choose another")
    similarity = np.full(len(features), np.nan, np.float32)
    similarity[known] = _directions(features[known]) @ _directions(features[query_row : query_row + 1])[0]
    colors = np.full((len(features), 3), UNKNOWN, np.uint8)
    colors[known] = heat(similarity[known], float(np.percentile(similarity[known], LOWEST_PERCENT)))
    return _colored(cloud, {"similarity": similarity}, colors, header, messages)


def nearest_row(points: np.ndarray, xyz: ArrayLike, reach_m: float) -> int:
    """Row of the (N, >=3) points, in m, nearest to (3,) `xyz` in their frame; points that are not finite are no answer.

    Raises ValueError when none is within `reach_m`.
    """
    wanted = np.asarray(xyz, np.float64)
    where = ", ".join(f"{value:.1f}" for value in wanted)
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.linalg.norm(points[:, :3] - wanted, axis=1)
    far[~np.isfinite(far)] = np.inf
    row = int(np.argmin(far)) if len(far) else -1
    if row < 0 or far[row] == np.inf:
        raise ValueError(f"no finite distance from {where} m to any of {len(points)} points")
    if far[row] > reach_m:
        raise ValueError(f"the point nearest to {where} m is {far[row]:.1f} m away, more than {reach_m:g} m")
    return row


def _principal(covariance: np.ndarray) -> np.ndarray:
    """(C, C) -> (C, 3) eigenvectors of the largest eigenvalues, largest first, their largest entry positive."""
    basis = np.linalg.eigh(covariance)[1][:, :-4:-1]
    return basis * np.sign(basis[np.abs(basis).argmax(0), range(3)])  # LAPACK's signs differ between machines


def _directions(features: np.ndarray) -> np.ndarray:
    """(N, C) -> rows of length 1; a row of zeros stays one."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)


def _check_rows(cloud: CloudPoints, features: np.ndarray) -> None:
    if features.ndim != 2 or len(features) != len(cloud):
        raise ValueError(f"features are {features.shape}, the cloud needs ({len(cloud)}, C)")


def _colored(
    cloud: CloudPoints, columns: dict[str, np.ndarray], rgb: np.ndarray, header: Any, messages: Messages
) -> Any:
    """PointCloud2 of the cloud's points in their order, further columns and colours."""
    axes = {axis: np.ascontiguousarray(cloud.points[:, index]) for index, axis in enumerate("xyz")}
    return messages.cloud_of(pack_cloud(axes | columns | {"rgb": pack_rgb(rgb)}), header)
