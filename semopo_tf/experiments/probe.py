"""What a linear map can read from a stream's features.

Ridge regression on fresh episodes; R² on episodes that it was not fitted to.
A model that separates well reads the robot from the endogenous stream alone
and the background from the exogenous one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from semopo_tf.experiments.fresh import FreshEpisode

Arrays = dict[str, np.ndarray]

HELD_OUT = 0.25                    # share of the episodes, the last ones
STRENGTHS = np.logspace(0, 6, 7)   # of the penalty, tried on fitted episodes
FOLDS = 3                          # … of which some are left out in turn
COMPONENTS = 8                     # of the background's frames
SIDE = 16                          # pixels to which these are reduced


def probe(fresh: Sequence[FreshEpisode], feat: Mapping[str, Sequence],
          earliest: int, cartpole: bool = False) -> Arrays:
    """`probe/<stream>/{robot,background}`, for cartpole also `pole`: R².

    Args:
      feat: features [L, F] of every episode, by stream.
      earliest: rows before are left out, as the filter has seen too little.
      cartpole: the state is position, cos, sin, two speeds; the pole is the
        angle alone.

    `background` (first principal components of the video frame) is left out
    where there is no video, a target that never changes is NaN.
    """
    held = max(1, round(HELD_OUT * len(fresh)))
    fitted = len(fresh) - held
    late = [slice(min(earliest, len(one) - 1), None) for one in fresh]
    targets = {'robot': [one.state[part] for one, part in zip(
        fresh, late, strict=True)]}
    if cartpole:
        targets['pole'] = [state[:, 1:3] for state in targets['robot']]
    videos = [one.background for one in fresh if one.background is not None]
    if len(videos) == len(fresh):
        targets['background'] = components(
            [small(video[part])
             for video, part in zip(videos, late, strict=True)], fitted)
    found = {}
    for name, episodes in feat.items():
        rows = [x[part] for x, part in zip(episodes, late, strict=True)]
        for key, target in targets.items():
            found[f'probe/{name}/{key}'] = np.array(linear_r2(
                rows, target, fitted, scale=key != 'background'), np.float32)
    return {**found, 'probe/episodes': np.array([fitted, held])}


def linear_r2(feat: Sequence[np.ndarray], target: Sequence[np.ndarray],
              fitted: int, scale: bool = True) -> float:
    """Held-out R² of ridge regression from features to targets.

    The first `fitted` episodes are fitted to, the others judged: 1 − Σ
    squared errors / Σ squared deviations from the fitted episodes' mean, over
    all targets; so features that tell nothing get 0, not less for episodes
    that differ. The strength of the penalty is chosen by leaving out fitted
    episodes in turn (at least two are needed): rows of one episode are too
    alike for less.

    Args:
      feat: per episode [L, F]; target: per episode [L, D].
      scale: targets count equally, whatever their units; those that are
        constant are left out. NaN if all are.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler
    x, y = np.concatenate(feat[:fitted]), np.concatenate(target[:fitted])
    x_new, y_new = np.concatenate(feat[fitted:]), np.concatenate(
        target[fitted:])
    moving = (y.std(0) > 1e-6) & (y_new.std(0) > 1e-6)
    if not moving.any():
        return float('nan')
    y, y_new = (part[:, moving].astype(np.float64) for part in (y, y_new))
    mean, std = y.mean(0), y.std(0) if scale else 1.0
    y, y_new = (y - mean) / std, (y_new - mean) / std
    scaler = StandardScaler().fit(x.astype(np.float64))
    x, x_new = (scaler.transform(part.astype(np.float64))
                for part in (x, x_new))
    groups = np.repeat(np.arange(fitted), [len(one) for one in feat[:fitted]])
    folds = GroupKFold(min(FOLDS, fitted)).split(x, groups=groups)
    ridge = RidgeCV(STRENGTHS, cv=list(folds)).fit(x, y)
    guess = ridge.predict(x_new)
    error = np.square(y_new - guess.reshape(y_new.shape)).sum()
    return float(1 - error / np.square(y_new).sum())


def small(frames: np.ndarray) -> np.ndarray:
    """Video frames [L, h, w, C] in gray, [L, SIDE²] float32 in 0…1."""
    import cv2
    gray = frames.astype(np.float32).mean(-1) / 255
    return np.stack([cv2.resize(
        frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
        for frame in gray])


def components(frames: Sequence[np.ndarray], fitted: int,
               ) -> list[np.ndarray]:
    """First principal components [L, ≤ COMPONENTS] of frames [L, P] per
    episode; the directions are those of the first `fitted` episodes."""
    from sklearn.decomposition import PCA
    known = np.concatenate(frames[:fitted])
    count = min(COMPONENTS, *known.shape)
    pca = PCA(count, svd_solver='full').fit(known)
    return [pca.transform(rows) for rows in frames]
