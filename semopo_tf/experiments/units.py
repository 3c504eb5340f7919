"""What uncertainties are counted in, and which of them may be compared.

Gaussian latents and classes have other units, and so have different numbers
of them, and different penalties (specification of the baselines 10.5).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from dreamerv2_base.config import load_config
from semopo_tf import settings
from semopo_tf.experiments import scales
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import Row

# What stands for u in measurements that did not store it.
OLD = 'mean_disagreement'


def latents(evidence: Evidence, system: str, name: str) -> str:
    """The latents of a system on a set: `8 × 8 classes`.

    Of its runs' `config.yaml`, of which keys may have changed what presets
    say; of presets where no run has one. Several kinds are joined by 'or'.
    """
    found = {_kind(*_sizes(path, path.stat().st_mtime_ns))
             for row in evidence.runs(system, name) if row.logdir
             and (path := Path(row.logdir) / 'config.yaml').exists()}
    if not found:
        known = settings.presets()
        rssm = known.apply(known.defaults, scales.presets_of(
            scales.SCALES[evidence.scale], system, name)).rssm
        found = {_kind(rssm.stoch, rssm.discrete)}
    return ' or '.join(sorted(found))


def penalty(evidence: Evidence, row: Row, quantity: str) -> str | None:
    """The penalty that a run's stored u is, by name.

    None where u was not stored: before there was `<quantity>/penalty`,
    'uncertainty' had none, and 'frames' the mean disagreement for it.
    """
    found = evidence.quantity(row, f'{quantity}/penalty')
    return None if found is None else str(found)


def spelled(names: Iterable[str]) -> str:
    """Penalties in words."""
    return ' or '.join(sorted(name.replace('_', ' ') for name in set(names)))


@functools.cache
def _sizes(path: Path, changed: int) -> tuple[int, int]:
    """`rssm.stoch` and `rssm.discrete` of a file as it is since `changed`."""
    rssm = load_config(path).rssm
    return rssm.stoch, rssm.discrete


def _kind(stoch: int, discrete: int) -> str:
    return (f'{stoch} × {discrete} classes' if discrete
            else f'a Gaussian of {stoch}')
