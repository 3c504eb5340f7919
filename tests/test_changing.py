"""docs/changing_semopo.md: its code runs, and changes what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.tf import tf
from semopo_tf import registry, settings
from semopo_tf.experiments import commands, grid, measure
from semopo_tf.semopo import SeMOPO
from tests.helpers import ROOT
from tests.test_experiments_grid import parse_command


@pytest.fixture(scope='module')
def written():
    """What the page's Python defines."""
    text = (ROOT / 'docs' / 'changing_semopo.md').read_text()
    found: dict = {}
    code, = re.findall(r'```python\n(.*?)```', text, re.S)
    exec(compile(code, 'changing_semopo.md', 'exec'), found)
    return found


def test_another_mask_takes_three_lines_of_wiring(written):
    config, _ = settings.resolve(['--configs', 'debug', '--jit', 'eager'])
    usual, sharp = (kind(config, None, 2) for kind in (
        SeMOPO, written['SharpMask']))
    rssm = usual.agent.world_model.rssm
    feat = tf.random.stateless_normal((1, 2, rssm.feat_size), (0, 1))
    masks = [method.agent.world_model.decoder(feat, feat)['mask'].numpy()
             for method in (usual, sharp)]
    logits = [np.log(mask / (1 - mask)) for mask in masks]
    assert np.abs(logits[0]).max() > 1e-3
    np.testing.assert_allclose(logits[1], 4 * logits[0], rtol=1e-3, atol=1e-5)


def test_a_run_of_it_can_be_measured(written, monkeypatch):
    monkeypatch.setattr(registry, 'WORLD_MODELS', (
        *registry.WORLD_MODELS, 'sharp_mask'))
    config, _ = settings.resolve(['--configs', 'debug'])
    measure.check(config.update({'method': 'sharp_mask'}), grid.QUANTITIES)
    with pytest.raises(UserError, match='found bc, which has no world model'):
        measure.check(config.update({'method': 'bc'}), grid.QUANTITIES)


def test_a_variant_by_its_class_has_a_label():
    found = commands._request(*parse_command(
        'reproduce', '--scale', 'mini', '--table', '1', '--systems', 'SeMOPO',
        '--method', 'semopo', '--label', 'sharp_mask'))
    assert {cell.system for cell in found.cells} == {'SeMOPO [sharp_mask]'}
