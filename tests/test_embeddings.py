"""Embedding each frame once gives the policy what the encoder would."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import embeddings, settings
from semopo_tf.world_model_method import WorldModelMethod
from tests.helpers import make_folder


@pytest.fixture
def store(tmp_path):
    return open_store([make_folder(tmp_path / 'data', count=3, actions=2)])


def method(store, tmp_path, *flags):
    config, _ = settings.resolve([
        '--configs', 'debug', '--logdir', str(tmp_path / 'run'), *flags])
    return WorldModelMethod(config, store)


def test_batches_are_those_of_the_sampler_with_embeddings(store, tmp_path):
    made = method(store, tmp_path)
    source = made.phases()[1].source(store)
    plain = method(store, tmp_path, '--cache_embeddings', 'False')
    images = plain.phases()[1].source(store)
    world_model = made.agent.world_model
    for step in range(3):
        fast, slow = source.batch(step), images.batch(step)
        assert 'image' not in fast
        for key in set(slow) - {'image'}:
            np.testing.assert_array_equal(fast[key], slow[key])
        embed = world_model.encoder(
            world_model.preprocess(slow)['image'])
        np.testing.assert_allclose(fast['embed'], embed, atol=1e-5)
        np.testing.assert_array_equal(
            source.video_batch(step)['image'], slow['image'])


def test_data_may_be_longer_than_a_block(store, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, 'BLOCK', 8)  # episodes have 30 rows
    made = method(store, tmp_path)
    source = made.phases()[1].source(store)
    batch, images = source.batch(0), source.video_batch(0)
    world_model = made.agent.world_model
    embed = world_model.encoder(world_model.preprocess(images)['image'])
    np.testing.assert_allclose(batch['embed'], embed, atol=1e-5)


def test_policy_update_is_the_same_within_rounding(store, tmp_path):
    made = method(store, tmp_path)
    phase = made.phases()[1]
    fast = phase.source(store).batch(0)
    slow = method(store, tmp_path, '--cache_embeddings', 'False').phases()[
        1].source(store).batch(0)
    before = dict(made.state())
    results = []
    for batch in (fast, slow):
        made.load(before)
        draws = CounterDraws(0, 'test', tf.constant(0, tf.int64))
        outputs, metrics = made.agent.agent_train(
            {k: tf.constant(v) for k, v in batch.items()}, draws)
        results.append((outputs, metrics, dict(made.state())))
    for name in results[0][1]:
        np.testing.assert_allclose(
            results[0][1][name], results[1][1][name], rtol=1e-5, atol=1e-6)
    for name in before:
        np.testing.assert_allclose(
            results[0][2][name], results[1][2][name], rtol=1e-4, atol=1e-6)


def test_kept_for_one_encoder_only(store, tmp_path):
    made = method(store, tmp_path)
    made.phases()[1].source(store)
    folder = tmp_path / 'run' / 'cache'
    first = [path.name for path in folder.iterdir()]
    made.phases()[1].source(store)
    assert [path.name for path in folder.iterdir()] == first
    variable = made.agent.world_model.encoder.variables[0]
    variable.assign(variable + 1)
    made.phases()[1].source(store)
    second = [path.name for path in folder.iterdir()]
    assert len(first) == len(second) == 1
    assert first != second


def test_bfloat16_comes_back_from_disk(store, tmp_path):
    made = method(store, tmp_path, '--precision', 'bf16')
    for _ in range(2):  # written, and found written
        batch = made.phases()[1].source(store).batch(0)
        embed = tf.convert_to_tensor(batch['embed'])
        assert embed.dtype == tf.bfloat16
        assert np.isfinite(tf.cast(embed, tf.float32)).all()
        assert np.std(tf.cast(embed, tf.float32)) > 0


def test_policies_learn_from_the_window_the_model_ended_with(tmp_path):
    """8 episodes; windows of 1, 3 and 5 in three updates (spec section 8)."""
    store = open_store([make_folder(tmp_path / 'data', count=8, actions=2)])
    made = method(
        store, tmp_path, '--sampling', 'released', '--sampling_start', '1',
        '--sampling_grow_updates', '1', '--offline_model_train_steps', '3',
        '--model_train_steps', '3')
    source = made.phases()[-1].source(store)
    drawn = {int(number) for step in range(50)
             for number in source.indices(step)[0]}
    assert drawn == set(np.argsort(store.returns)[:5])
    batch, images = source.batch(7), source.video_batch(7)
    world_model = made.agent.world_model
    embed = world_model.encoder(world_model.preprocess(images)['image'])
    np.testing.assert_allclose(batch['embed'], embed, atol=1e-5)


def test_with_a_given_model_the_window_is_that_of_a_whole_model_phase(
        tmp_path):
    """15 episodes, 10 at the start: 250 blocks later all but the last."""
    store = open_store([make_folder(tmp_path / 'data', count=15, actions=2)])
    made = method(
        store, tmp_path, '--sampling', 'released', '--cache_embeddings',
        'False', '--offline_model_train_steps', '0')
    source = made.phases()[-1].source(store)
    drawn = {int(number) for step in range(50)
             for number in source.indices(step)[0]}
    assert drawn == set(np.argsort(store.returns)[:14])
