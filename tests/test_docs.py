"""Documents that speak of the code are held to it."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest

from dreamerv2_base.config import read_yaml
from semopo_tf import preset_diff, settings
from semopo_tf.experiments.results import read_csv
from tests.helpers import ROOT

MAP = (ROOT / 'docs' / 'name_map.md').read_text()
DIVERGENCES = (ROOT / 'docs' / 'divergences.md').read_text()
KEYS = settings.presets().defaults.flat()


def test_every_name_of_ours_exists():
    names = re.findall(r'`([a-z_0-9.]+):([A-Za-z_.]+)`', MAP)
    assert len(names) > 25
    for module, path in names:
        found = importlib.import_module(module)
        for part in path.split('.'):
            found = getattr(found, part)


def test_every_trap_that_a_test_names_is_explained():
    text = (ROOT / 'docs' / 'sections.md').read_text()
    rows = text.split('## Traps')[1]
    known = {number for row in re.findall(r'(?m)^\| ([\d, ]+) \|', rows)
             for number in row.split(', ')}
    named = {number for path in (ROOT / 'tests').glob('*.py')
             for number in re.findall(r'[Tt]raps?[ _](\d+)', path.read_text())}
    assert len(named) >= 14
    assert named <= known


def test_our_configuration_keys_are_all_listed():
    section = MAP.split('## Configuration keys of ours')[1].split('##')[0]
    listed = set(re.findall(r'`([a-z_]+)`', section)) - {'jit'}
    marked = set()
    for line in (ROOT / 'configs.yaml').read_text().splitlines():
        found = re.match(r'  ([a-z_]+):.*# \(ours\)', line)
        if found:
            marked.add(found[1])
    marked.discard('jit')
    assert listed <= set(KEYS)
    assert listed == marked


COLUMNS = ['what', 'text says', 'released code does', 'here', 'key',
           'held by']


def divergences():
    """The rows of all tables of divergences.md: column -> cell."""
    rows, head = [], []
    for line in re.findall(r'(?m)^\|(.*)\|$', DIVERGENCES):
        cells = [cell.strip() for cell in line.split('|')]
        if cells[0] == 'what':
            head = cells
            # All tables have one shape; an empty column is left out.
            assert head == [name for name in COLUMNS if name in head]
        elif set(cells) != {'---'}:
            rows.append(dict(zip(head, cells, strict=True)))
    return rows


def test_keys_of_divergences_exist():
    named = [key for row in divergences()
             for key in re.findall(r'`([^`]+)`', row.get('key', ''))]
    assert len(named) >= 80
    assert set(named) <= set(KEYS)


def test_every_divergence_names_what_holds_it():
    rows = divergences()
    assert len(rows) >= 95
    for row in rows:
        assert re.search(r'::test_|` trace|not held: ', row['held by']), row


def test_tests_that_divergences_name_exist():
    named = re.findall(r'`([\w/]+\.py)(?:::(\w+))?`', DIVERGENCES)
    tests = [(path, test) for path, test in named if 'test_' in path]
    assert len([test for _, test in tests if test]) >= 150
    for path, test in tests:
        text = (ROOT / 'tests' / path).read_text()
        assert not test or f'\ndef {test}(' in text, (path, test)
    traces = set(re.findall(r'`(\w+)` trace', DIVERGENCES)) - {'NAME'}
    assert len(traces) >= 8
    for name in traces:
        assert (ROOT / 'tests/parity/data' / f'{name}.npz').exists(), name


def test_presets_table_has_every_row_of_section_11():
    rows = {row.key: row for row in preset_diff.rows('paper', 'released')}
    assert set(preset_diff.SECTION_11) <= set(rows)
    assert all(row.reason for row in rows.values()), [
        key for key, row in rows.items() if not row.reason]
    assert (rows['offline_lmbd'].left, rows['offline_lmbd'].right) == (
        10.0, 5.0)


def test_reasons_are_of_real_keys():
    assert set(read_yaml(preset_diff.REASONS)) <= set(KEYS)


def test_presets_as_json_and_markdown():
    rows = json.loads(preset_diff.render('paper', 'offline_dv2', 'json'))
    assert {'key', 'left', 'right', 'reason'} == set(rows[0])
    text = preset_diff.render('paper', 'released', 'markdown')
    assert '| `offline_lmbd` | 10.0 | 5.0 |' in text


@pytest.mark.parametrize(('name', 'least'), [
    ('README.md', 8), ('docs/traces.md', 3), ('docs/design.md', 3),
    ('docs/name_map.md', 1)])
def test_files_that_documents_name_exist(name, least):
    text = (ROOT / name).read_text()
    paths = re.findall(r'`((?:docs|semopo_tf|dreamerv2_base|tests)/'
                       r'[\w/]+\.\w+)`', text)
    assert len(paths) >= least
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize('path', sorted(
    (ROOT / 'docs' / 'results' / 'mini').glob('rows*.csv')),
    ids=lambda path: path.stem)
def test_every_row_stands_in_the_document(path):
    text = ''.join((ROOT / 'docs' / 'results' / name).read_text()
                   for name in ('mini.md', 'mini_history.md'))
    rows = read_csv(path)
    assert rows
    for row in rows:
        mean, spread = np.mean(row.returns), np.std(row.returns)
        shown = (rf'\b{mean:.0f}\b' if row.variant
                 else rf'\b{mean:.0f} ± {spread:.0f}\b')
        assert re.search(shown, text), (row.run, shown)


@pytest.mark.parametrize(('name', 'least'), [
    ('mini.md', 20), ('mini_history.md', 1)])
def test_results_that_documents_point_to_exist(name, least):
    text = (ROOT / 'docs' / 'results' / name).read_text()
    targets = re.findall(r'\]\((?!http)([^)#]+)\)', text)
    assert len(targets) >= least
    for target in targets:
        assert (ROOT / 'docs' / 'results' / target).exists(), target
