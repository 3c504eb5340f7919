"""Several models begun: the best one goes on, whatever is killed."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import settings, starts
from semopo_tf.starts import Starts
from semopo_tf.world_model_method import WorldModelMethod
from tests.helpers import make_folder

UPDATES = 4


class Toy:
    """A model of one number w: an update takes 1 from it, it is worth 2 w."""

    BEGINNINGS = (7.0, 9.0, 6.0)

    def __init__(self, enough=8.0):
        self.w = tf.Variable(self.BEGINNINGS[0])
        self.seen = []
        self.starts = Starts(
            3, UPDATES, enough, lambda k: {'w': np.float32(self.BEGINNINGS[k])},
            {'w': self.w}, self._train, lambda batch, step: 2 * self.w)

    def _train(self, batch, step):
        self.seen.append((batch, step))
        self.w.assign_sub(1.0)
        return {'model_loss': self.w.numpy() + 1}

    def run(self, steps):
        return [self.starts.update('batch', step) for step in steps]


WORTH = [9.0, 13.0, 7.0]  # twice the means of 6 5 4 3, 8 7 6 5, 5 4 3 2


def test_the_highest_worth_goes_on():
    toy = Toy()
    rows = toy.run(range(3 * UPDATES))
    assert [row['start'] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert toy.seen == [('batch', step) for step in (0, 1, 2, 3) * 3]
    found = [row['start_worth'] for row in rows if 'start_worth' in row]
    np.testing.assert_allclose(found, WORTH)
    np.testing.assert_allclose(toy.starts.worth, WORTH)
    assert toy.w.numpy() == 2  # the last one's
    toy.starts.finish()
    assert toy.w.numpy() == 5
    assert set(toy.starts.state()) == {'starts/worth', 'starts/ended'}


def test_starts_of_little_worth_are_said(capsys):
    for enough, said in ((13.0, False), (13.1, True)):
        toy = Toy(enough)
        toy.run(range(3 * UPDATES))
        toy.starts.finish()
        found = capsys.readouterr().err
        assert ('9.000, 13.000, 7.000 nats; model_start_worth asks for 13.1'
                in found) == said == bool(found)


@pytest.mark.parametrize(('enough', 'begun'), [
    (8.9, 1), (9.0, 1), (9.1, 2), (13.0, 2), (13.1, 3)])
def test_no_other_is_begun_after_one_that_is_worth_enough(enough, begun):
    toy = Toy(enough)
    over = []
    for step in range(begun * UPDATES):
        over.append(toy.starts.over())
        toy.run([step])
    # Not in the middle of a start, whatever its updates are worth so far.
    assert over == [False] * len(over)
    assert toy.starts.over() == (enough <= 13)
    np.testing.assert_allclose(toy.starts.worth, WORTH[:begun])


def test_a_start_is_judged_by_its_last_updates(monkeypatch):
    monkeypatch.setattr(starts, 'JUDGED', 2)
    toy = Toy()
    toy.run(range(3 * UPDATES))
    np.testing.assert_allclose(toy.starts.worth, [7, 11, 5])


@pytest.mark.parametrize('stop', range(3 * UPDATES + 1))
def test_stopped_anywhere_it_ends_in_the_same_place(stop):
    one, two = Toy(), Toy()
    one.run(range(stop))
    saved = {name: np.array(value)
             for name, value in one.starts.state().items()}
    two.starts.load(saved)
    assert two.starts.over() == one.starts.over()
    two.w.assign(one.w)
    two.run(range(stop, 3 * UPDATES))
    np.testing.assert_allclose(two.starts.worth, WORTH)
    two.starts.finish()
    assert two.w.numpy() == 5


def test_another_number_of_starts_is_a_user_error():
    with pytest.raises(UserError, match='expected 3 starts, found 2'):
        Toy().starts.load({
            'starts/worth': np.zeros(2), 'starts/ended': np.array(0)})
    with pytest.raises(UserError, match=r'starts/worth, found.* --logdir'):
        Toy().starts.load({'starts/losses': np.zeros(3)})
    with pytest.raises(UserError, match=r'starts/ended, found.* --logdir'):
        Toy().starts.load({'starts/worth': np.zeros(3)})


def test_batches_of_one_chunk_cannot_judge():
    flags = ['--configs', 'debug', '--offline_model_dataset.batch', '1']
    settings.resolve(flags)
    with pytest.raises(UserError, match=r'at least 2 chunks.*--model_starts 1'):
        settings.resolve([*flags, '--model_starts', '2'])


@pytest.fixture
def store(tmp_path):
    return open_store([make_folder(tmp_path / 'data', count=3, actions=2)])


def method(store, *flags):
    config, _ = settings.resolve([
        '--configs', 'debug', '--jit', 'eager', *flags])
    return WorldModelMethod(config, store)


def test_before_the_model_and_on_the_same_batches(store):
    made = method(
        store, '--model_starts', '2', '--model_start_updates', '3')
    first, *others = made.phases()
    assert (first.name, first.updates) == ('starts', 6)
    assert [phase.name for phase in others] == ['model', 'agent']
    source = first.source(store)
    for step in range(3):
        one, two = source.batch(step), source.batch(step + 3)
        np.testing.assert_array_equal(one['image'], two['image'])
    assert (source.batch(0)['image'] != source.batch(1)['image']).any()


def test_the_record_of_a_failure_names_the_rows_of_the_start(store):
    first = method(store, '--model_starts', '2',
                   '--model_start_updates', '3').phases()[0]
    source = first.source(store)
    # Update 4 is the second start's: its batch is that of update 1.
    action, (episodes, rows) = source.batch(4)['action'], source.indices(4)
    for number, place in enumerate(zip(episodes, rows, strict=True)):
        np.testing.assert_array_equal(action[number, 1:], store.slice(
            *map(int, place), action.shape[1])['action'][1:])


def test_the_first_start_is_the_run_without_starts(store):
    made = method(store, '--model_starts', '2', '--model_start_updates', '1')
    plain = method(store)
    assert [phase.name for phase in plain.phases()] == ['model', 'agent']
    mine = made.state()
    for name, value in plain.state().items():
        np.testing.assert_array_equal(mine[name], value)
    first = made.phases()[0]
    source = first.source(store)
    for step in range(2):
        first.train(first.prepare(source.batch(step)), step)
    kernel = 'world_model/mask/mask1/kernel'
    before = plain.state()[kernel]
    assert abs(made.state()[kernel] - before).max() > 0.01  # drawn anew
    worth = made.state()['starts/worth']
    assert worth[0] != worth[1]
    first.finish()
    other = method(store, '--model_starts', '2', '--model_start_updates', '1')
    other.load({name: np.array(value)
                for name, value in made.state().items()})
    np.testing.assert_array_equal(other.state()[kernel], made.state()[kernel])


def test_no_two_starts_begin_alike(store):
    made = method(store, '--model_starts', '3')
    one, two = made._fresh_weights(1), made._fresh_weights(2)
    kernel = 'world_model/mask/mask1/kernel'
    assert (one[kernel] != two[kernel]).all()


def test_a_given_model_and_one_stream_are_not_begun(store, tmp_path):
    for flags in (('--offline_model_loaddir', str(tmp_path)),
                  ('--offline_model_train_steps', '0'),
                  ('--separate_wm', 'False')):
        made = method(store, '--model_starts', '2', *flags)
        assert [phase.name for phase in made.phases()] == ['model', 'agent']
