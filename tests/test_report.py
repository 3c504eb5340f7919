"""The report: one file that holds what the run folder holds."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from dreamerv2_base.logger import Logger
from semopo_tf import report, report_plots, settings
from semopo_tf.report import write_report


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / 'run'
    logger = Logger(folder, tensorboard=False)
    for step in (10, 20):
        logger.scalars('model', step, {'model_loss': 5.0 / step,
                                       'disen/kl': 1.0})
        logger.timings('model', step, {
            'updates_per_second': 2.0, 'data_wait': .01, 'seconds': 5.0})
    logger.scalars('agent', 10, {'actor_loss': -1.0, 'lambda': 5.0})
    for i in range(4):
        logger.episode({'phase': 'agent', 'step': 10, 'final': i > 1,
                        'episode': i, 'return': 10.0 * i})
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    for name in ('policy', 'openl_joint', 'openl_mask'):
        logger.video('agent', 10, name, frames)
    logger.video('agent', 5, 'policy', frames)
    logger.close()
    config, _ = settings.resolve(['--configs', 'debug', '--seed', '7'])
    config.save(folder / 'config.yaml')
    records = {
        'data.json': {'returns': [1.0, 2.0, 9.0], 'episodes': ['a'] * 3,
                      'skipped': [['bad.npz', 'truncated']]},
        'start.json': {'presets': ['debug'], 'changed': ['seed']},
        'versions.json': {'tensorflow': '2.19.1'},
        'warnings.json': ['offline_lmbd_cons 10 has no <effect>'],
        'sampling_model.json': {'episodes': 3, 'never_drawn': 1}}
    for name, content in records.items():
        (folder / name).write_text(json.dumps(content))
    return folder


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs
                       if key in ('src', 'href')]
        if tag not in ('meta', 'img', 'br', 'input'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_everything_is_inside_and_well_formed(run_folder):
    page = Page(write_report(run_folder).read_text())
    assert page.open == []
    assert all(link.startswith('data:') for link in page.links)
    assert page.tags.count('video') == 3  # the newest of each
    assert page.tags.count('img') == 4  # returns, evaluations, two phases


def test_it_says_what_the_run_was(run_folder):
    text = ' '.join(Page(write_report(run_folder).read_text()).text)
    for words in ('dmcdrv_walker_walk', 'debug', 'seed 7', 'finished',
                  '25.0 ± 5.0', '2 episodes', 'mean 4.0', '1 broken',
                  'has no <effect>', 'never drawn 1', 'tensorflow',
                  '2.00 updates/s', 'the policy in its environment'):
        assert words in text, words


@pytest.mark.parametrize(('presets', 'level', 'shown'), [
    (['infogating', 'drq_mini'], 'random', True),
    (['infogating'], 'medium', False), (['lompo'], 'random', False),
    (['debug'], 'random', False)])
def test_the_papers_number_where_there_is_one(
        run_folder, presets, level, shown):
    config, _ = settings.resolve([
        '--configs', 'debug', '--offline_dir', f'data/hopper_hop/{level}'])
    config.save(run_folder / 'config.yaml')
    (run_folder / 'start.json').write_text(json.dumps({'presets': presets}))
    text = write_report(run_folder).read_text()
    # Baselines' specification, 7.2.
    assert ('(Table 5)</th><td>67</td>' in text) == shown
    assert ('Table 5' in text) == shown


def test_films_are_the_files(run_folder):
    page = Page(write_report(run_folder).read_text())
    films = {base64.b64decode(link.split(',')[1]) for link in page.links
             if link.startswith('data:video')}
    assert films == {path.read_bytes() for path in
                     (run_folder / 'videos').glob('agent_0000010_*')}


def test_a_film_that_does_not_fit_keeps_no_smaller_one_out(
        run_folder, monkeypatch):
    sizes = {'openl_joint': 50, 'openl_mask': 300, 'policy': 40}
    for name, size in sizes.items():
        (run_folder / 'videos' / f'agent_0000010_{name}.mp4').write_bytes(
            bytes(size))
    monkeypatch.setattr(report, 'VIDEO_BUDGET', 100)
    text = write_report(run_folder).read_text()
    assert text.count('<video') == 2
    assert '1 more in videos/' in text


def test_films_of_a_model_are_explained_where_there_are_any(run_folder):
    words = 'predicted from the actions alone'
    assert words in write_report(run_folder).read_text()
    for path in (run_folder / 'videos').glob('*openl*'):
        path.unlink()
    assert words not in write_report(run_folder).read_text()


def test_curves_leave_the_final_evaluation_out():
    picture = report_plots.curves([
        {'phase': 'agent', 'step': 1, 'actor_loss': 1.0},
        {'phase': 'agent', 'step': 2, 'actor_loss': 0.5,
         'final_eval_return': 3.0}]).decode()
    assert '>actor_loss<' in picture
    assert 'final_eval_return' not in picture


def test_what_is_missing_is_said(tmp_path):
    config, _ = settings.resolve(['--configs', 'debug'])
    config.save(tmp_path / 'config.yaml')
    text = ' '.join(Page(write_report(tmp_path).read_text()).text)
    assert 'nothing trained yet' in text
    assert 'not evaluated yet' in text
    assert 'No updates yet' in text
