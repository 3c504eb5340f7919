"""Presets, overrides, types, nearest names, the released command line."""

from __future__ import annotations

import re

import pytest

from dreamerv2_base.config import (
    Config,
    Presets,
    load_config,
    parse_flags,
    read_yaml,
)
from dreamerv2_base.errors import UserError
from semopo_tf import inert, penalties, settings
from tests.helpers import ROOT

RELEASED_COMMAND = (
    '--configs dmc_vision --task dmcdrv_cheetah_run --offline_dir data/a '
    'data/b --offline_penalty_type meandis --offline_lmbd_cons 10 '
    '--separate_wm True --disen_action_type none --grad_heads none '
    '--disen_scales.reward 0.0 --disen_scales.disen_only 1.5 '
    '--replay.incremental True --replay.sort_rewards True --steps 1e5 '
    '--offline_datset_type medium --seed 1 --jit True --precision 16 '
    '--logdir runs/x').split()

VIDEO = ('video_dir', 'video_frames', 'video_alpha', 'background_grayscale')
SCENE = ('scene', 'shadows', 'dmc_camera')
SEEN = ('--video_dir x --video_frames 9 --video_alpha .5 '
        '--background_grayscale False --scene grey_floor --shadows False '
        '--dmc_camera 2 --render_size 64 64 --action_repeat 4 '
        '--time_limit 100')


@pytest.fixture
def small(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text(
        'defaults:\n  a: 1\n  b: {x: 0.5, y: text}\n  c: {x: 2.0}\n'
        '  flag: False\n  names: [p, q]\n'
        'one: {a: 2, b.x: 1}\ntwo:\n  based_on: one\n  b: {y: other}\n'
        'wrong: {zzz: 1}\n')
    return Presets.read(path)


def test_presets_that_come_after_others(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text(
        'defaults: {a: 1}\none: {a: 2}\ntwo: {based_on: one}\n'
        'small: {after: [one, other], a: 3}\n')
    presets = Presets.read(path)
    for names in (['one', 'small'], ['two', 'small']):
        assert presets.parse(['--configs', *names])[0].a == 3
    with pytest.raises(UserError, match='small after one of one, other, found '
                       'small two; give --configs one small'):
        presets.parse(['--configs', 'small', 'two'])


def test_presets_name_presets():
    blocks = read_yaml(ROOT / 'configs.yaml')
    order = list(blocks)
    for name, block in blocks.items():
        for key in ('after', 'based_on'):
            known = (block or {}).get(key, [])
            for other in [known] if isinstance(known, str) else known:
                assert order.index(other) < order.index(name)


def test_presets_apply_in_order_and_build_on_each_other(small):
    config, names = small.parse(['--configs', 'two', '--a', '7'])
    assert names == ['two']
    assert config.nested() == {
        'a': 7, 'b': {'x': 1.0, 'y': 'other'}, 'c': {'x': 2.0},
        'flag': False, 'names': ['p', 'q']}


def test_regex_and_list_flags(small):
    config, _ = small.parse(['--.*\\.x', '9', '--names', 'u', 'v', 'w',
                             '--flag', 'True'])
    assert (config.b.x, config.c.x) == (9.0, 9.0)
    assert config.names == ['u', 'v', 'w']
    assert config.flag is True


@pytest.mark.parametrize(('flags', 'message'), [
    (['--aa', '1'], r'nearest: a'),
    (['--b.z', '1'], r"unknown|known key, found 'b.z'"),
    (['--x', '1'], r'nearest: [bc]\.x'),
    (['--a', '1.5'], r'a: expected int'),
    (['--a', 'word'], r"found 'word'"),
    (['--b.x', 'True'], r'b.x: expected float'),
    (['--flag', 'maybe'], r'flag: expected bool'),
    (['--a', '1', '2'], r'expected one value'),
    (['--a'], r'--a: expected a value'),
    (['stray'], r"found 'stray'"),
    (['--configs', 'onee'], r'nearest: one'),
    (['--configs', 'wrong'], r'c.yaml: wrong'),
    (['--[', '1'], r'known key'),
])
def test_mistakes_are_one_line_user_errors(small, flags, message):
    with pytest.raises(UserError, match=message) as error:
        small.parse(flags)
    assert '\n' not in str(error.value)


def test_config_is_immutable_and_round_trips(small, tmp_path):
    config, _ = small.parse(['--configs', 'one'])
    assert config.update({'a': 5}).a == 5
    assert config.a == 2
    config.save(tmp_path / 'out.yaml')
    assert load_config(tmp_path / 'out.yaml').flat() == config.flat()
    with pytest.raises(TypeError):
        config['a'] = 3  # type: ignore[index]


def test_difference():
    left, right = Config({'a': 1, 'b': {'c': 2}}), Config({'a': 1, 'b': {
        'c': 3}})
    assert left.difference(right) == {'b.c': (2, 3)}


def test_every_preset_resolves():
    names = settings.presets().names
    assert len([n for n in names if n.startswith(
        ('walker', 'cheetah', 'hopper', 'humanoid', 'car_'))]) == 15
    for name in names:
        first = read_yaml(ROOT / 'configs.yaml')[name].get('after', [])
        settings.resolve([
            '--configs', *([first] if isinstance(first, str) else first[:1]),
            name])


def test_the_released_command_runs_unchanged():
    config, _ = settings.resolve(RELEASED_COMMAND)
    assert config.offline_dir == ['data/a', 'data/b']
    assert (config.rssm.hidden, config.steps, config.jit) == (
        200, 100000, 'none')
    assert settings.sampling_of(config) == 'released'


def test_flags_without_effect_are_named():
    config, _ = settings.resolve(RELEASED_COMMAND)
    notes = inert.warnings(config, parse_flags(RELEASED_COMMAND))
    assert any('offline_lmbd_cons 10' in n and 'offline_lmbd = 5' in n
               for n in notes)
    assert any('offline_datset_type' in n for n in notes)
    # … by a regex, too,
    found = inert.warnings(config, parse_flags(['--offline_lmbd_con[s]', '3']))
    assert len(found) == 1
    # … and only those that were given.
    assert not any('disen_reward_lr' in n for n in notes)
    assert not inert.warnings(config, {})


def test_released_preset_is_what_the_command_computes():
    ours, _ = settings.resolve(['--configs', 'released'])
    theirs, _ = settings.resolve(RELEASED_COMMAND)
    different = set(ours.difference(theirs))
    # What the command does not say, and what only folders and names differ in.
    assert different <= {
        'logdir', 'task', 'offline_dir', 'offline_datset_type', 'seed',
        'sampling'}


def test_the_penalties_that_may_be_named_are_those_there_are():
    assert set(settings.CHOICES['offline_penalty_type']) == {
        *penalties.PENALTIES, *penalties.RELEASED_NAMES}


def test_hopper_has_its_own_weights():
    """Spec sections 4 and 5: c = 2.0 (w = 4), λ_R = 30000."""
    released, _ = settings.resolve(['--configs', 'released',
                                    'hopper_hop_random'])
    assert released.disen_scales.disen_only == 2.0
    drp, _ = settings.resolve(['--configs', 'se_rs_drp', 'hopper_hop_medium'])
    assert 'se_rs_drp_hopper' in inert.warnings(drp)[0]
    own, _ = settings.resolve(['--configs', 'se_rs_drp_hopper',
                               'hopper_hop_medium'])
    assert own.disen_scales.reward == 30000
    assert inert.warnings(own) == []
    for preset in ('released', 'se_rs'):
        own, _ = settings.resolve(
            ['--configs', preset, '--task', 'dmcdrv_hopper_hop'])
        assert inert.warnings(own) == [
            'disen_scales.disen_only is 1.5, of the other tasks; hopper has '
            '2: give --disen_scales.disen_only 2']
    own, _ = settings.resolve(
        ['--configs', 'paper', '--task', 'dmcdrv_hopper_hop'])
    assert inert.warnings(own) == []


def test_tia_has_its_own_weights_of_hopper():
    """Baselines 6.2: λ_R = 30000 and c² = 2; what is advised is silent."""
    for others in (['tia', 'hopper_hop_random'],
                   ['tia_hopper_hop', 'hopper_hop_random']):
        config, _ = settings.resolve(['--configs', *others])
        [note] = inert.warnings(config)
        assert '--configs tia_hopper_hop alone' in note
    config, _ = settings.resolve(['--configs', 'tia_hopper_hop'])
    assert inert.warnings(config) == []


def test_dissociation_without_its_gradients_is_told():
    """Baselines 6.5: it needs `reward` among the grad heads."""
    said = ['disen_scales.reward has no effect on the latents while reward '
            'is not among grad_heads']
    for heads, notes in ((['none'], said), (['decoder', 'reward'], [])):
        config, _ = settings.resolve(['--configs', 'se_rs_drp'])
        assert inert.warnings(config.update({'grad_heads': heads})) == notes


def test_paper_values():
    """The rows of spec section 11."""
    paper, _ = settings.resolve(['--configs', 'paper'])
    assert paper.offline_lmbd == 10
    assert paper.model_opt.lr == 6e-5
    assert paper.actor_opt.lr == paper.critic_opt.lr == 8e-5
    assert paper.rssm.nested() | {
        'hidden': 1024, 'deter': 200, 'stoch': 32, 'discrete': 0,
        'ensemble': 7} == paper.rssm.nested()
    assert paper.encoder.cnn_depth == paper.decoder.cnn_depth == 32
    assert paper.offline_penalty_type == 'disagreement'
    assert not paper.exo_only_decoder
    assert paper.imag_horizon == 5
    assert (paper.offline_model_dataset.batch,
            paper.offline_model_dataset.length) == (64, 50)
    assert (paper.offline_model_train_steps, paper.steps) == (25000, 100000)
    assert settings.sampling_of(paper) == 'paper'


def test_ablations_differ_from_released_in_the_right_keys():
    released, _ = settings.resolve(['--configs', 'released'])

    def changed(name):
        return set(released.difference(
            settings.resolve(['--configs', name])[0]))

    order = {'sampling', 'replay.incremental', 'replay.sort_rewards'}
    assert changed('se_rs') == order
    assert changed('se_rs_drp') == order | {
        'disen_scales.reward', 'grad_heads'}
    assert changed('se_cs') == set()
    assert changed('offline_dv2_rs') == order | {
        'separate_wm', 'disen_action_type', 'grad_heads'}


@pytest.mark.parametrize('flags', [
    ['--sampling', 'sometimes'], ['--precision', '8'], ['--jit', 'maybe'],
    ['--render_size', '64', '32'], ['--steps', '-1']])
def test_values_outside_their_choices(flags):
    with pytest.raises(UserError):
        settings.resolve(flags)


def test_penalty_weight_of_methods_with_their_own_penalty_has_effect():
    flags = {'offline_lmbd': ['3']}
    for preset, warned in (('lompo', False), ('mopo', False),
                           ('dreamerv2', True)):
        config, _ = settings.resolve(
            ['--configs', preset, '--offline_lmbd', '3'])
        notes = inert.warnings(config, flags)
        assert any('offline_lmbd has no effect' in note
                   for note in notes) == warned


def test_runs_of_before_a_key_have_its_default(tmp_path):
    config, _ = settings.resolve(['--configs', 'debug', '--seed', '3'])
    path = tmp_path / 'config.yaml'
    config.save(path)
    assert settings.saved(path).flat() == config.flat()
    path.write_text(''.join(line for line in path.read_text().splitlines(True)
                            if not line.startswith('slice_frames')))
    assert settings.saved(path).flat() == config.flat()
    path.write_text(path.read_text() + 'no_such_key: 1\n')
    with pytest.raises(UserError, match=r'config\.yaml.*no_such_key|no_such_'):
        settings.saved(path)


@pytest.mark.parametrize(('flags', 'named'), [
    ('--configs drq_bc --imag_horizon 15 --drq.alpha 3', {'imag_horizon'}),
    ('--configs lompo --sampling paper --mopo.horizon 3 --rssm.hidden 8',
     {'sampling', 'mopo.horizon'}),
    ('--configs mopo --rssm.hidden 8 --sac.units 8', {'rssm.hidden'}),
    ('--configs released --lompo.alpha 1 --replay.incremental False',
     {'lompo.alpha', 'replay.incremental'}),
    ('--configs paper --sampling_start 20 --sampling_epoch_updates 2',
     {'sampling_start'}),
    ('--configs drq_bc --model_starts 3 --prefill 3',
     {'model_starts', 'prefill'}),
    # What is seen, in tasks that show less (spec section 10).
    (f'--configs released car_racing_random {SEEN}', {*VIDEO, *SCENE}),
    (f'--configs bc --task gym_carracing {SEEN}', {*VIDEO, *SCENE}),
    (f'--task dmc_walker_walk {SEEN}', set(VIDEO)),
    (f'--task dmcdrv_walker_walk {SEEN}', set()),
    (f'--task dmcdrv_walker_walk {SEEN} --video_dir none', set(VIDEO[1:])),
    (f'--configs mopo --task state_walker_walk {SEEN}',
     {*VIDEO, *SCENE, 'render_size'}),
    (f'--configs mopo --task state_gym_Hopper-v4 {SEEN}',
     {*VIDEO, *SCENE, 'render_size'}),
    (f'--task of_my_own {SEEN}', set())])
def test_flags_of_other_methods_are_named_once(flags, named):
    words = flags.split()
    config, _ = settings.resolve(words)
    notes = inert.warnings(config, parse_flags(words))
    assert sorted(note.split()[0] for note in notes) == sorted(named)


def test_flags_of_an_evaluation_without_effect_are_named():
    config, _ = settings.resolve(['--task', 'dmc_walker_walk'])
    given = parse_flags(['--background_grayscale', 'False', '--steps', '3'])
    assert [note.split()[0] for note in inert.of_an_evaluation(
        config, given)] == ['background_grayscale']
    behind = config.update({'task': 'dmcdrv_walker_walk'}, 'test')
    assert inert.of_an_evaluation(behind, given) == []


def test_a_long_seed_is_not_rounded():
    for text, number in (('12345678901234567', 12345678901234567),
                         ('1e3', 1000)):
        config, _ = settings.resolve(['--seed', text])
        assert config.seed == number


@pytest.mark.parametrize(('flags', 'found'), [
    ('--seed -1', 'seed: expected at least 0, found -1'),
    ('--offline_model_dataset.length 1', 'expected at least 2, found 1'),
    ('--discount 2', 'expected 0 to 1, found 2'),
    ('--offline_split_val True', 'a validation split is not part of'),
    ('--video_frames 0', 'video_frames: expected at least 1, found 0'),
    ('--video_alpha -0.1', 'expected 0 to 1, found -0.1; .*--video_alpha 0'),
    ('--video_alpha 1.5', 'expected 0 to 1, found 1.5; .*--video_alpha 1'),
    ('--mopo.real_share 1.5', r'mopo\.real_share: expected 0 to 1'),
    ('--mopo.real_share nan', "expected float .as 0.05., found 'nan'"),
    ('--offline_lmbd inf', "expected float .as 5.0., found 'inf'"),
    ('--model_opt.lr -1e-4', 'model_opt.lr: expected at least 0'),
    ('--keep_checkpoints 0', 'keep_checkpoints: expected at least 1'),
    ('--discount_head.dist foo', "expected one of binary, mse, found 'foo'"),
    # What no policy update could take the mode of.
    ('--reward_head.dist binary', r'reward_head\.dist: .* of mse, found .bin'),
    ('--critic.dist binary', r'critic\.dist: expected .* mse, found .binary'),
    ('--model_opt.opt adamw', "found 'adamw'")])
def test_values_that_make_no_sense(flags, found):
    with pytest.raises(UserError, match=found):
        settings.resolve(flags.split())


@pytest.mark.parametrize(
    ('key', 'value'), [(key, least - 1) for key, least in
                       settings.LEAST.items()]
    + [(key, most + 1) for key, most in settings.MOST.items()])
def test_a_number_out_of_bounds_is_one_line(key, value):
    with pytest.raises(UserError, match=(
            rf'^{re.escape(key)}: expected .*, found {value}; give --{key} '
            )) as caught:
        settings.resolve([f'--{key}', str(value)])
    assert '\n' not in str(caught.value)


def test_frames_are_of_the_size_that_a_world_model_draws():
    for flags in ('--image_size 84', '--render_size 84 84'):
        config, _ = settings.resolve(['--configs', 'released', *flags.split()])
        with pytest.raises(UserError, match=r'expected 64, .* found 84'):
            settings.check_frames(config)
        pixels, _ = settings.resolve(['--configs', 'bc', *flags.split()])
        settings.check_frames(pixels)


def test_the_home_directory_is_meant(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    config, _ = settings.resolve(
        ['--offline_dir', '~/a', 'b', '--logdir', '~/run'])
    assert config.offline_dir == ['/home/me/a', 'b']
    assert config.logdir == '/home/me/run'


def test_every_group_of_keys_says_who_reads_it():
    """A new method's group needs its row in inert.READERS."""
    rows = [*(key for keys, _ in inert.READERS for key in keys),
            *inert.NO_EFFECT, *inert.ONLINE_ONLY, *inert.OFFLINE_ONLY]
    named = {key.split('.')[0] for key in rows}
    groups = {key for key, value in settings.presets().defaults.items()
              if isinstance(value, Config)}
    assert len(groups) > 20
    # Exploration by disagreement: `inert.warnings` names it as no part.
    assert groups - named == {'expl_opt', 'expl_head', 'expl_reward_norm'}
