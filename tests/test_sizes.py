"""Full-size networks: weights per module as the specification implies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from semopo_tf import doctor, memory, settings


def dense(inputs, units):
    return inputs * units + units


def conv(kernel, inputs, filters):
    return kernel * kernel * inputs * filters + filters


def encoder(d):
    return (conv(4, 3, d) + conv(4, d, 2 * d) + conv(4, 2 * d, 4 * d)
            + conv(4, 4 * d, 8 * d))


def decoder(d, feat, channels):
    return (dense(feat, 32 * d) + conv(5, 32 * d, 4 * d)
            + conv(5, 4 * d, 2 * d) + conv(6, 2 * d, d)
            + conv(6, d, channels))


def rssm(d, stoch, deter, hidden, stats, members, actions):
    gru = dense(hidden + deter, 3 * deter) + 2 * 3 * deter  # and layer norm
    head = dense(deter, hidden) + dense(hidden, stats)
    posterior = dense(deter + 4 * 8 * d, hidden) + dense(hidden, stats)
    return dense(stoch + actions, hidden) + gru + members * head + posterior


def mlp(inputs, layers, units, outputs):
    return (dense(inputs, units) + (layers - 1) * dense(units, units)
            + dense(units, outputs))


def expected(d, stoch, deter, hidden, stats, exo_only, actions=6):
    feat = stoch + deter
    recurrent = rssm(d, stoch, deter, hidden, stats, 7, actions)
    counts = {
        'world_model/encoder': encoder(d),
        'world_model/exo_encoder': encoder(d),
        'world_model/rssm': recurrent, 'world_model/exo_rssm': recurrent,
        'world_model/endo_decoder': decoder(d, feat, 6),
        'world_model/exo_decoder': decoder(d, feat, 6),
        'world_model/mask': conv(1, 6, 1),
        'world_model/heads/reward': mlp(feat, 4, 400, 1),
        'world_model/exo_heads/reward': mlp(feat, 4, 400, 1),
        'behavior/critic': mlp(feat, 4, 400, 1),
        'behavior/slow_critic': mlp(feat, 4, 400, 1),
        'behavior/actor': mlp(feat, 4, 400, actions) + dense(400, actions)}
    if exo_only:
        counts['world_model/exo_only_decoder'] = decoder(d, feat, 3)
    return counts


@pytest.mark.parametrize(('preset', 'sizes'), [
    ('released', {'d': 48, 'stoch': 1024, 'deter': 200, 'hidden': 200,
                  'stats': 1024, 'exo_only': True}),
    ('paper', {'d': 32, 'stoch': 32, 'deter': 200, 'hidden': 1024,
               'stats': 64, 'exo_only': False})])
def test_weights_per_module(preset, sizes):
    from semopo_tf.world_model_method import WorldModelMethod
    config, _ = settings.resolve(['--configs', preset])
    method = WorldModelMethod(config, None, action_size=6)
    assert method.parameters() == expected(**sizes)


def norm(size):
    return 2 * size


def block(inputs, filters):  # a convolution without bias, and its norm
    return 9 * inputs * filters + norm(filters)


def test_weights_per_module_of_infogating():
    # Baselines 7.1, layer by layer.
    from semopo_tf.baselines.infogating import InfoGating
    config, _ = settings.resolve(['--configs', 'infogating'])
    assert InfoGating(config, None, action_size=6).parameters() == {
        'encoder': (
            conv(6, 9, 128) + conv(1, 128, 128) + conv(3, 128, 128)
            + conv(4, 128, 256) + dense(6400, 256) + norm(256)),
        'mask_net': (
            block(9, 32) + block(32, 32) + block(32, 64) + 2 * block(64, 64)
            + dense(1600, 128) + dense(128, 128) + dense(128, 1600)
            + 2 * block(128, 64) + block(128, 32) + 2 * block(64, 32)
            + conv(1, 32, 3)),
        # The batch norm keeps a mean and a variance beside its weights.
        'energy': ((256 + 256 + 6) * 256 + 2 * norm(256) + dense(256, 1)),
        'policy': mlp(256, 2, 1024, 6)}


def test_memory_estimate_grows_with_the_batch_and_shrinks_with_precision():
    config, _ = settings.resolve(['--configs', 'released'])
    full = memory.training(config, 10 ** 7).total
    half = config.update({'offline_model_dataset.batch': 32})
    wide = config.update({'precision': '32'})
    assert memory.training(half, 10 ** 7).total < 0.65 * full
    assert memory.training(wide, 10 ** 7).total > 1.6 * full


def test_without_weight_the_exogenous_only_decoder_takes_no_memory():
    config, _ = settings.resolve(['--configs', 'released'])
    without = [memory.training(config.update(change), 10 ** 7).total
               for change in ({'disen_scales.disen_only': 0.0},
                              {'exo_only_decoder': False})]
    assert without[0] == without[1] < memory.training(config, 10 ** 7).total


@pytest.fixture
def room(monkeypatch):
    """A machine's room: half a GiB is free, 8 GiB are the cache of files."""
    found = SimpleNamespace(free=memory.GIB // 2, available=8.5 * memory.GIB)
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda _folder:
                        SimpleNamespace(free=20 * memory.GIB))
    monkeypatch.setattr(memory.psutil, 'virtual_memory', lambda: found)
    return found


def test_doctor_passes_on_a_small_configuration(capsys, room):
    assert doctor.run(['--configs', 'debug', '--jit', 'eager', '--task',
                       'dmc_cartpole_swingup']) == 0
    text = capsys.readouterr().out
    for word in ('tensorflow', 'renderer', 'model update', 'memory',
                 'disk', 'verdict: this configuration can run here'):
        assert word in text, word


def test_doctor_finds_too_little_memory(room):
    room.available = memory.GIB // 2
    presets = settings.presets()
    config = presets.apply(presets.defaults, ['debug'])
    found = doctor.Findings()
    doctor.check_memory(config, 58_412, [], found)
    assert found.problems == [
        'memory: 1.0 GiB wanted, 0.5 GiB free; give '
        '--offline_model_dataset.batch a smaller number']


@pytest.mark.parametrize(('name', 'weights', 'measured'), [
    ('bc', 3_098_492, 1.2), ('drq_bc', 11_454_764, 1.4),
    ('drq_cql', 11_454_764, 1.5), ('infogating', 4_576_266, 6.8)])
def test_memory_of_the_pixel_methods_is_near_what_was_measured(
        name, weights, measured):
    # Peak of a process that made updates at batch 256, GiB (run.py doctor).
    presets = settings.presets()
    config = presets.apply(presets.defaults, [name])
    found = memory.pixel_training(config, weights).total / memory.GIB
    assert measured / 1.1 < found < 1.3 * measured


def test_doctor_times_an_update_of_a_pixel_method(capsys, room):
    presets = settings.presets()
    config = presets.apply(presets.defaults, ['drq_cql', 'drq_debug'])
    found = doctor.Findings()
    doctor.check_pixel_method(config, [], found)
    assert not found.problems
    assert 'update, batch 4' in capsys.readouterr().out
    huge = config.update({'drq.batch_size': 10 ** 8})
    doctor.check_pixel_method(huge, [], found)
    assert 'give --drq.batch_size' in found.problems[0]
    doctor.check_pixel_method(
        config.update({'precision': '16'}), [], found)
    assert 'give --precision 32' in found.problems[1]
