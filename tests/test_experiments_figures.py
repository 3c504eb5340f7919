"""Figures 2-10 and the page: what is drawn is what rows hold."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from dreamerv2_base.errors import UserError
from semopo_tf import settings
from semopo_tf.experiments import (
    figure_style,
    figures,
    figures_bars,
    figures_curves,
    figures_images,
    grid,
    metrics,
    page,
    paper_numbers,
    units,
)
from semopo_tf.experiments.evidence import Curve, Evidence
from semopo_tf.experiments.results import Row

SETS = ('walker_walk_random', 'cheetah_run_random')
SYSTEMS = ('SeMOPO', 'Offline DV2', 'LOMPO', 'Se+RS', 'Se+RS+DRP')


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, 'RESAMPLES', 20)


def quantities(system, frames=0):
    """What a run may have measured; md are literal numbers, u three times
    those."""
    level = {'endogenous': 1.0, 'exogenous': 2.0, 'joint': 3.0}
    streams = ['joint']
    if system.startswith('Se'):
        streams = ['endogenous', 'exogenous']
    image = np.full((1, 4, 8, 8, 3), 10 * frames, np.uint8)
    found = {'frames/index': np.array([[0, 1], [0, 2]]) + frames,
             'frames/image': image[0, :2], 'reconstruction/image': image,
             'reconstruction/model': image + 1,
             'uncertainty/penalty': np.array('disagreement'),
             'frames/penalty': np.array('disagreement'),
             'entropy/updates': np.array([100, 200])}
    for stream in streams:
        spread = np.array([-0.5, 0.5]) + level[stream]
        found[f'uncertainty/{stream}/md'] = spread
        found[f'uncertainty/{stream}/vlp'] = 10 * spread
        found[f'uncertainty/{stream}/u'] = 3 * spread
        found[f'frames/{stream}/u'] = spread
    if 'endogenous' in streams:
        found['reconstruction/endogenous'] = image + 2
    for name, low in (('random', 5.0), ('conservative', 4.0)):
        for kind in figures_curves.ESTIMATORS:
            found[f'entropy/{name}/{kind}'] = np.array([low, low + 0.5])
    return found


def make_row(folder, name, system, seed, values=None, norms=(3.0, 1.0)):
    cell = grid.Cell(system, name, seed, 'demo')
    logdir = folder / cell.name
    logdir.mkdir(parents=True, exist_ok=True)
    np.savez(logdir / 'quantities.npz',
             **(quantities(system) if values is None else values))
    (logdir / 'metrics.jsonl').write_text(''.join(
        json.dumps({'phase': 'model', 'step': 100 * (step + 1),
                    'model_grad_norm': norm, 'disen_grad_norm': 7.0}) + '\n'
        for step, norm in enumerate(norms))
        + json.dumps({'phase': 'agent', 'step': 1}) + '\n')
    task, level = name.rsplit('_', 1)
    base = 100.0 * (len(SYSTEMS) - SYSTEMS.index(system)) + seed
    return Row(run=cell.run(), system=system, presets=[], set=name, task=task,
               level=level, seed=seed, scale='demo', commit='c0ffee',
               dirty=False, returns=[base, base + 10],
               quantities=str(logdir / 'quantities.npz'), logdir=str(logdir))


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return [make_row(folder, name, system, seed) for name in SETS
            for system in SYSTEMS for seed in range(2)]


def evidence_of(rows, item, systems=SYSTEMS, sets=SETS, seeds=2):
    return Evidence(rows, [item], [
        grid.Cell(system, name, seed, 'demo', ('',), (item,))
        for system in systems if system in grid.ITEMS[item].systems
        for name in sets for seed in range(seeds)])


def draw(item, evidence):
    with figure_style.style():
        drawing = figures.MAKERS[item](evidence, paper_numbers.load())
        drawing.figure.canvas.draw()
    texts = [text.get_text() for text in drawing.figure.findobj(Text)]
    return drawing, [text for text in texts if text]


ALL = list(figures.MAKERS)


@pytest.mark.parametrize('item', ALL)
def test_a_figure_is_written_as_png_and_svg(rows, item, tmp_path):
    made = figures.make(item, evidence_of(rows, item), paper_numbers.load(),
                        tmp_path)
    image = np.asarray(Image.open(made.png).convert('RGB'))
    assert image.shape[0] > 200
    assert image.std() > 5  # something is drawn
    assert made.svg.read_text().rstrip().endswith('</svg>')
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{item}.png', f'{item}.svg'}
    assert not any('missing' in text
                   for text in draw(item, evidence_of(rows, item))[1])


def test_a_figure_has_the_same_bytes_every_time(rows, tmp_path):
    first, again = (figures.make('figure4', evidence_of(rows, 'figure4'),
                                 paper_numbers.load(), tmp_path / name)
                    for name in 'ab')
    assert first.svg.read_bytes() == again.svg.read_bytes()
    assert first.png.read_bytes() == again.png.read_bytes()


@pytest.mark.parametrize('item', ALL)
def test_without_rows_every_panel_says_missing(item):
    drawing, texts = draw(item, evidence_of([], item))
    assert sum('missing: ' in text for text in texts) >= 2
    for axes in drawing.figure.axes:
        assert not axes.containers
        assert not [line for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize('item', ALL)
def test_runs_that_were_not_measured_are_not_said_to_be_missing(item, tmp_path):
    made = [make_row(tmp_path, name, system, seed, values={}, norms=())
            for name in SETS for system in grid.ITEMS[item].systems
            for seed in range(2)]
    drawing, texts = draw(item, evidence_of(made, item))
    found = any('not measured' in text or 'without records' in text
                for text in texts)
    assert found == (item not in ('figure4', 'figure10'))  # returns alone
    assert not any('missing: ' in text for text in texts)  # the rows are there
    if found:
        assert any('copy runs/' in note for note in drawing.notes)


# Bars.


def test_bars_are_means_and_whiskers_deviations(rows):
    drawing, _ = draw('figure2', evidence_of(rows, 'figure2'))
    axes = drawing.figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3.0, 9.0]
    whisker = axes.containers[1].lines[2][0].get_segments()[0]
    assert whisker[:, 1].tolist() == [1.5, 4.5]  # ± 3 · 0.5
    assert 'on 2 of 2 sets' in ' '.join(drawing.notes)


def test_figure_2_shows_the_penalty_of_the_runs_and_names_it(rows):
    drawing, texts = draw('figure2', evidence_of(rows, 'figure2'))
    assert 'uncertainty u\n(disagreement)' in texts
    assert not any('vlp' in text for text in texts)  # figures 7 and 8 alone
    for system in SYSTEMS[:2]:
        assert (f'{system}: u is the penalty of its runs, disagreement.'
                in drawing.notes)
    for item in ('figure7', 'figure8'):
        heights = [bar.get_height() for bar in
                   draw(item, evidence_of(rows, item))[0].figure.axes[
                       0].patches]
        assert heights[0] == 1.0  # md


def test_measurements_without_u_fall_back_to_md_and_say_so(tmp_path):
    """All runs of a system together: one of the old ones is enough."""
    old = {key: value for key, value in quantities('SeMOPO').items()
           if key.split('/')[-1] not in ('u', 'penalty')}
    old |= {key: value for key, value in quantities('SeMOPO').items()
            if key.startswith('frames/') and key.endswith('/u')}
    made = [make_row(tmp_path, SETS[1], 'SeMOPO', seed, values)
            for seed, values in enumerate((old, None))]
    made.append(make_row(tmp_path, SETS[1], 'Offline DV2', 0))
    drawing, _ = draw('figure2', evidence_of(made, 'figure2', sets=SETS[1:]))
    heights = [[bar.get_height() for bar in axes.patches]
               for axes in drawing.figure.axes]
    assert heights == [[1.0], [9.0]]  # axes of their own: other penalties
    notes = ' '.join(drawing.notes)
    assert 'SeMOPO: shown is mean disagreement (md)' in notes
    assert 'Offline DV2: u is the penalty of its runs, disagreement.' in notes
    assert 'and of the penalty' in notes
    assert 'smaller mean' not in notes
    drawing, _ = draw('figure3', evidence_of(
        made, 'figure3', sets=SETS[1:], seeds=1))
    notes = ' '.join(drawing.notes)
    assert 'SeMOPO: u is mean disagreement (md), whichever' in notes
    assert 'not compared across systems' in notes


def test_units_are_those_of_the_runs_not_of_their_presets(tmp_path):
    """`--rssm.discrete 0`, given to every run."""
    made = [make_row(tmp_path, SETS[1], system, 0) for system in SYSTEMS[:3]]
    for row, stoch in zip(made, (6, 6, 4), strict=True):
        config, _ = settings.resolve(['--configs', 'demo', '--rssm.discrete',
                                      '0', '--rssm.stoch', str(stoch)])
        config.save(Path(row.logdir) / 'config.yaml')
    drawing, _ = draw('figure7', evidence_of(
        made, 'figure7', sets=SETS[1:], seeds=1))
    assert ('Units are those of the latents (SeMOPO: a Gaussian of 6, Offline '
            'DV2: a Gaussian of 6, LOMPO: a Gaussian of 4): panels'
            in ' '.join(drawing.notes))


def test_units_of_systems_that_were_asked_for_alone():
    """LOMPO was not: the others share axes, and nothing says otherwise."""
    evidence = Evidence([], ['figure7'], [
        grid.Cell(system, name, 0, 'mini', ('',), ('figure7',))
        for system in SYSTEMS[:2] for name in SETS])
    assert units.latents(evidence, 'SeMOPO', SETS[0]) == 'a Gaussian of 32'
    drawing, _ = draw('figure7', evidence)
    assert not any('own axes' in note for note in drawing.notes)
    assert len(drawing.figure.axes) == 4  # md and vlp × two tasks


def test_lompo_has_its_own_axes(rows):
    drawing, _ = draw('figure7', evidence_of(rows, 'figure7'))
    heights = [[bar.get_height() for bar in axes.patches]
               for axes in drawing.figure.axes]
    assert heights[::2] == [[1.0, 3.0], [3.0], [10.0, 30.0], [30.0]]


def test_latents_of_other_kinds_are_not_compared(tmp_path):
    """At scale `paper` SeMOPO's are Gaussian and Offline DV2's classes."""
    made = [dataclasses.replace(
        make_row(tmp_path, name, system, 0), scale='paper',
        run=f'paper/{name}/{system}') for name in (SETS[1],)
        for system in SYSTEMS[:2]]
    for item in ('figure2', 'figure3', 'figure7'):
        evidence = Evidence(made, [item], [
            grid.Cell(system, SETS[1], 0, 'paper', ('',), (item,))
            for system in SYSTEMS[:2]])
        drawing, texts = draw(item, evidence)
        notes = ' '.join(drawing.notes)
        assert 'not compared across' in notes
        assert 'smaller mean' not in notes
        if item == 'figure3':
            assert 'share of the\nlargest U' in texts
            assert 'U' not in texts
            assert 'one scale' not in notes
        if item == 'figure2':
            assert 'SeMOPO: a Gaussian of 32' in notes
            assert 'Offline DV2: 32 × 32 classes' in notes
            heights = [[bar.get_height() for bar in axes.patches]
                       for axes in drawing.figure.axes]
            assert heights == [[3.0], [9.0]]


def test_a_claim_that_does_not_hold_is_said(tmp_path):
    values = quantities('SeMOPO')
    values['uncertainty/endogenous/md'] = np.array([5.0, 5.0])
    made = [make_row(tmp_path, SETS[0], 'SeMOPO', 0, values)]
    drawing, _ = draw('figure8', evidence_of(
        made, 'figure8', sets=SETS[:1], seeds=1))
    assert any('md: ' in note and 'on 0 of 1 sets (not on walker_walk_random)'
               in note for note in drawing.notes)


def test_a_bar_with_a_missing_run_is_hatched(rows):
    some = [row for row in rows if (row.system, row.seed) != ('SeMOPO', 1)]
    drawing, texts = draw('figure2', evidence_of(some, 'figure2'))
    assert [bool(bar.get_hatch()) for bar in drawing.figure.axes[0].patches
            ] == [True, False]
    assert 'SeMOPO, missing: 1 of 2 runs (hatched)' in texts


# Scores.


def test_improvement_is_the_metrics(rows):
    _, texts = draw('figure4', evidence_of(rows, 'figure4'))
    # SeMOPO wins all its pairs, Offline DV2 those against the other two.
    values = [text for text in texts if text in ('0.00', '1.00')]
    assert values == ['1.00', '1.00', '1.00', '1.00', '0.00', '0.00'] * 2
    assert 'every final episode a run (4 × 2)' in texts
    assert 'every seed a run (2 × 2)' in texts


def test_the_papers_marks_are_of_its_episodes_and_its_size(rows):
    """Also where our runs are missing."""
    def marks(some, scale):
        wanted = [grid.Cell(system, SETS[0], 0, scale, ('',), ('figure4',))
                  for system in ('SeMOPO', 'Se+RS')]
        drawing, _ = draw('figure4', Evidence(
            [dataclasses.replace(row, scale=scale) for row in some
             if row.seed == 0 and row.set == SETS[0]], ['figure4'], wanted))
        return [[text.get_text() for text in axes.texts
                 if 'paper' in text.get_text()]
                for axes in drawing.figure.axes]
    assert marks(rows, 'mini') == [[], []]
    for scale in ('paper', 'released'):
        assert marks(rows, scale) == marks([], scale) == [['paper, above'], []]


def test_notes_of_figure_4_call_systems_as_its_axis_does(rows):
    some = [row for row in rows if row.system != 'Offline DV2']
    drawing, texts = draw('figure4', evidence_of(some, 'figure4'))
    assert 'Se+CS > Offline DV2+RS' in texts
    assert any(note.startswith('Se+CS > Offline DV2+RS: left out are ')
               for note in drawing.notes)
    assert not any('SeMOPO >' in note for note in drawing.notes)
    notes = draw('figure10', evidence_of(some, 'figure10'))[0].notes
    assert 'Offline DV2+RS: missing: 4 runs.' in notes


def test_a_set_with_a_missing_run_is_left_out_and_named(rows):
    some = [row for row in rows if (row.system, row.seed, row.set)
            != ('Se+RS', 1, SETS[1])]
    drawing, texts = draw('figure10', evidence_of(some, 'figure10'))
    assert 'every seed a run (2 × 1)' in texts
    assert texts.count('1 of 2 sets') == 2
    assert ('Left out are cheetah_run_random (missing: 1 run).'
            in drawing.notes)


def test_profile_is_the_share_above(rows):
    drawing, _ = draw('figure10', evidence_of(rows, 'figure10'))
    line = drawing.figure.axes[1].lines[0]  # SeMOPO, seeds
    scale = metrics.published_range('walker_walk')
    x, y = line.get_xdata(), line.get_ydata()
    low = scale.mean(505.0)  # walker's seeds; cheetah's are above 1
    assert y[x < low - 0.01].tolist() == [1.0] * int((x < low - 0.01).sum())
    assert np.isclose(y[x > low + 0.01], 0.5).any()


# Curves.


def test_entropy_curves_and_claim(rows, tmp_path):
    drawing, _ = draw('figure6', evidence_of(rows, 'figure6'))
    lines = [line.get_ydata().tolist()
             for line in drawing.figure.axes[0].lines]
    assert lines == [[5.0, 5.5], [4.0, 4.5]]
    assert any('histogram of 50 bins: on 2 of 2 sets.' in note
               for note in drawing.notes)
    values = quantities('SeMOPO')
    values['entropy/conservative/histogram'] = np.array([9.0, 9.0])
    values['entropy/random/gaussian'] = np.array([-np.inf, 1.0])
    values['entropy/conservative/nearest'] = np.array([4.0, 40.0])
    values['entropy/open'] = np.array([False, True])
    made = [make_row(tmp_path, SETS[0], 'SeMOPO', 0, values)]
    other = evidence_of(made, 'figure6', sets=SETS[:1], seeds=1)
    assert figures_curves.entropy_claim(other, SETS[:1], 'histogram') == (
        'Conservative below random, histogram of 50 bins: on 0 of 1 sets; '
        'not on walker_walk_random.')
    # Once the window is open, the samplings are alike.
    assert figures_curves.entropy_claim(other, SETS[:1], 'nearest') == (
        'Conservative below random, nearest neighbours: on 1 of 1 sets.')
    assert figures_curves.entropy_claim(other, SETS[:1], 'gaussian') == (
        'Conservative below random, Gaussian: nothing to compare. 1 set '
        'has no such number.')


def test_the_length_of_an_epoch_is_said(tmp_path):
    made = [make_row(tmp_path, SETS[0], 'SeMOPO', seed) for seed in range(2)]
    evidence = evidence_of(made, 'figure6', sets=SETS[:1])
    assert ('An epoch of every run is 100 updates.'
            in draw('figure6', evidence)[0].notes)
    values = {**quantities('SeMOPO'), 'entropy/updates': np.array([1, 2])}
    made[0] = make_row(tmp_path, SETS[0], 'SeMOPO', 0, values)
    notes = draw('figure6', evidence)[0].notes
    assert 'An epoch is 1 update: walker_walk_random seed 0.' in notes
    assert 'An epoch is 100 updates: walker_walk_random seed 1.' in notes


@pytest.mark.parametrize(('steps', 'said'), [
    (([1, 2, 3], [1, 2, 3]), ''),
    (([1, 2, 3, 4], [1, 2], [1, 2, 3, 4]),
     'from step 3 on the mean is of 2 of 3 runs'),
    (([1, 2, 3], [1, 3]), 'at 1 of 3 steps the mean is not of all runs, at '
     'the least of 1 of 2 runs')])
def test_runs_that_drop_out_of_a_mean_are_said(steps, said):
    curves = [Curve(np.array(some), np.ones(len(some))) for some in steps]
    assert figures_curves.thinned(curves) == said


def test_a_norm_curve_says_where_runs_drop_out(tmp_path):
    made = [make_row(tmp_path, SETS[0], 'SeMOPO', seed, norms=norms)
            for seed, norms in enumerate(((1.0, 2.0, 3.0), (1.0,)))]
    drawing, _ = draw('figure9', evidence_of(
        made, 'figure9', ('SeMOPO',), SETS[:1]))
    assert ('walker walk, SeMOPO: from step 200 on the mean is of 1 of 2 '
            'runs.' in drawing.notes)


def test_norms_that_are_not_finite_are_left_out_and_counted(tmp_path):
    made = [make_row(tmp_path, SETS[0], 'SeMOPO', 0,
                     norms=(1.0, 'inf', 5.0)),
            make_row(tmp_path, SETS[0], 'SeMOPO', 1, norms=(3.0, 4.0, 'nan'))]
    evidence = evidence_of(made, 'figure9', ('SeMOPO',), SETS[:1])
    drawing, _ = draw('figure9', evidence)
    line = drawing.figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [100, 200, 300]
    assert line.get_ydata().tolist() == [2.0, 4.0, 5.0]
    assert any('2 logged norms were not finite' in note
               for note in drawing.notes)
    assert any('mean 7' in note for note in drawing.notes)


# Images.


def test_frames_are_those_that_all_methods_were_measured_on(tmp_path):
    made = [make_row(tmp_path, SETS[1], 'SeMOPO', 0),
            make_row(tmp_path, SETS[1], 'Offline DV2', 0,
                     quantities('Offline DV2', frames=1))]
    evidence = evidence_of(made, 'figure3', sets=SETS[1:], seeds=1)
    drawing, texts = draw('figure3', evidence)
    assert texts.count(' not measured') == 2  # one in each frame
    assert 'U' in texts
    assert 'seed 0, bars of one scale' in drawing.notes[-1]
    assert any('Offline DV2 was measured on other frames' in note
               for note in drawing.notes)


def test_the_seed_with_the_most_systems_is_shown(rows):
    some = [row for row in rows if (row.system, row.seed) != ('SeMOPO', 0)]
    found, shown, text = figures_images.same_frames(
        evidence_of(some, 'figure3'), 'figure3', ['SeMOPO', 'Offline DV2'],
        SETS[0], 'frames/index', 'frames/image')
    assert {row.seed for row in found.values()} == {1}
    assert (shown, text) == (['SeMOPO', 'Offline DV2'], '')


def test_endogenous_reconstructions_are_shown(rows):
    drawing, texts = draw('figure5', evidence_of(rows, 'figure5'))
    strips = [axes.images[0].get_array() for axes in drawing.figure.axes[:5]]
    assert [int(strip[0, 0, 0]) for strip in strips] == [0, 2, 2, 2, 1]
    assert 'Offline DV2+RS' in texts


def test_a_run_of_the_seed_that_was_not_measured_is_told_from_a_missing_one(
        rows, tmp_path):
    some = [row for row in rows if row.set == SETS[1] and row.system in (
        'SeMOPO', 'Se+RS')]
    some += [make_row(tmp_path, SETS[1], 'Offline DV2', 0, values={})]
    drawing, texts = draw('figure5', evidence_of(
        some, 'figure5', sets=SETS[1:]))
    assert ('cheetah_run_random: seed 0; Se+RS+DRP is missing, Offline DV2 is '
            'not measured.' in drawing.notes)
    assert 'missing: 2 runs' in texts
    assert 'missing: 1 of 2 runs,\n1 of 2 runs not measured' in texts
    assert figure_style.NOT_MEASURED in drawing.notes


# The page.


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.anchors, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if 'src' in found:
            self.sources.append(found['src'])
        if tag == 'a':
            self.anchors.append(found['href'])
        if tag == 'link':
            self.sources.append(found.get('href'))
        if 'id' in found:
            self.ids.add(found['id'])


def test_page_has_everything_and_needs_nothing(rows, tmp_path):
    items = list(grid.ITEMS)
    written = page.write(rows, items, tmp_path, published_style=True)
    names = {path.name for path in written}
    assert len(names) == len(written) == 5 * 3 + 9 * 2 + 1
    assert all(path.exists() for path in written)
    assert {path.name for path in tmp_path.iterdir()} == names
    text = written[-1].read_text('utf-8')
    found = Page(text)
    assert written[-1].name == 'index.html'
    assert len(found.sources) == 9
    assert all(source.startswith('data:image/') for source in found.sources)
    assert {f'#{item}' for item in items} <= set(found.anchors)
    assert set(items) <= found.ids
    assert all(anchor.startswith('#') or (tmp_path / anchor).exists()
               for anchor in found.anchors)
    assert 'missing: ' in text  # BC, for one
    assert all(row.run in text for row in rows)


def test_page_has_last_and_best_policies_beside_the_final_one(tmp_path):
    row = make_row(tmp_path, 'walker_walk_random', 'SeMOPO', 0)
    values = [1.0, 90.0, 2.0, 3.0, 4.0, 5.0]
    with (Path(row.logdir) / 'metrics.jsonl').open('a') as file:
        for step, value in enumerate(values):
            name = 'final_eval_return' if step == 5 else 'eval_return'
            file.write(json.dumps(
                {'phase': 'agent', 'step': step, name: value}) + '\n')
    text = page._runs(evidence_of([row], 'table1'))
    assert '>20.80<' in text
    assert '>90.00<' in text
    elsewhere = dataclasses.replace(row, logdir='')
    assert page._runs(evidence_of([elsewhere], 'table1')).count('>–<') == 4


def test_page_says_which_runs_are_missing(rows):
    evidence = evidence_of(rows[1:], 'figure2')
    assert evidence.missing_runs() == {rows[0].run: 'not run'}


@pytest.mark.parametrize('content', [b'PK\x03\x04 broken', b''])
def test_broken_quantities_are_a_users_error(tmp_path, content):
    row = make_row(tmp_path, SETS[0], 'SeMOPO', 0)
    (tmp_path / grid.Cell('SeMOPO', SETS[0], 0, 'demo').name
     / 'quantities.npz').write_bytes(content)
    with pytest.raises(UserError, match='measure'):
        draw('figure2', evidence_of([row], 'figure2'))


@pytest.mark.parametrize('item', ['figure2', 'figure6', 'figure8', 'figure9'])
def test_the_names_above_a_single_panel_are_not_clipped(rows, item):
    drawing, _ = draw(item, evidence_of(rows, item, sets=SETS[:1]))
    legend, = drawing.figure.legends
    names = legend.get_window_extent()
    assert 0 < names.x0 < names.x1 < drawing.figure.bbox.x1


def test_every_system_has_its_own_colour():
    assert set(figure_style.COLOURS) == set(grid.SYSTEMS)
    assert len(set(figure_style.COLOURS.values())) == len(grid.SYSTEMS)
    assert figures_bars.ENDOGENOUS.colour == figure_style.COLOURS['SeMOPO']
