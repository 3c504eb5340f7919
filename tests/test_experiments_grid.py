"""The grid: which runs the tables and figures need, at which settings."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path

import pytest

import run
from datasets import registry
from dreamerv2_base.errors import UserError
from semopo_tf import settings
from semopo_tf.experiments import commands, grid, plan, scales, slurm
from semopo_tf.experiments.results import ResultStore, Row, read_csv
from tests.helpers import ROOT

PRESETS = settings.presets()
ALL = list(grid.ITEMS.values())


def parse_command(*arguments):
    return run.parser().parse_known_args(arguments)


def parse(*arguments):
    return parse_command('reproduce', *arguments)


def request(*arguments):
    return commands._request(*parse(*arguments))


def config_of(system, scale):
    return settings.check(PRESETS.apply(
        PRESETS.defaults, scales.presets_of(scales.SCALES[scale], system)))


def test_table_1_of_the_paper():
    found = request('--table', '1').cells
    assert len(found) == 15 * 7 * 4
    assert {cell.seed for cell in found} == {0, 1, 2, 3}
    assert [cell.seed for cell in found[104:106]] == [0, 1]  # seed by seed


def test_a_flag_of_several_values_may_be_given_again():
    options, _ = parse('--table', '1', '--table', '4', '--figure', '2',
                       '--systems', 'BC', '--systems', 'SeMOPO', 'TIA')
    assert options.table == [1, 4]
    assert options.systems == ['BC', 'SeMOPO', 'TIA']
    # Nothing stays for the next command line.
    assert parse('--figure', '3')[0].figure == [3]


def test_shared_runs_are_trained_once():
    found = request('--all').cells
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    used = {cell.name: cell for cell in found}
    shared = used['walker_walk_random/semopo/seed0']
    assert {'table1', 'table2', 'table5', 'figure4', 'figure9'} <= set(
        shared.items)
    # Table 2 evaluates the same run again.
    assert shared.runs == ('paper/walker_walk_random/semopo/seed0',
                           'paper/walker_walk_random/semopo/seed0@colour')
    assert used['hopper_hop_random/semopo/seed0'].variants == ('',)


def test_every_item_has_runs_at_the_demo_scale():
    found = request('--all', '--scale', 'demo').cells
    assert {item for cell in found for item in cell.items} == (
        set(grid.ITEMS) - {'table3'})  # made of the data, not of runs
    assert {cell.system for cell in found} == (
        set(grid.SYSTEMS) - {'SeMOPO (paper)'})
    assert len(found) <= 40


def test_two_names_of_one_run():
    assert grid.system_named('Se+CS').name == 'SeMOPO'
    assert grid.system_named('offline dv2+rs').name == 'Offline DV2'
    ours = config_of('Offline DV2', 'released')
    theirs = PRESETS.apply(PRESETS.defaults, ['offline_dv2_rs'])
    assert not ours.difference(theirs)


def test_one_run_is_not_planned_twice():
    both = ['--table', '1', '--systems', 'SeMOPO', 'SeMOPO (paper)']
    with pytest.raises(UserError, match=r'SeMOPO and SeMOPO \(paper\), which'):
        request(*both, '--scale', 'paper')
    names = {cell.system for cell in request(*both, '--scale', 'mini').cells}
    assert names == {'SeMOPO', 'SeMOPO (paper)'}


def test_help_names_every_system_and_what_it_does(capsys):
    with pytest.raises(SystemExit):
        parse('--help')
    printed = ' '.join(capsys.readouterr().out.split())
    assert ', '.join(grid.SYSTEMS) in printed
    assert 'as many as cores, at most 4' in printed


def test_own_sets_stand_in():
    found = grid.cells(
        grid.items_named([1], [2, 9]), ['our_own_set'], 1, 'mini')
    assert {cell.system for cell in found} == set(
        grid.ITEMS['table1'].systems)
    assert not grid.cells(grid.items_named([4], []), ['our_own_set'], 1,
                          'mini')


def test_v_d4rl_is_evaluated_without_background():
    cell = grid.Cell('SeMOPO', 'vd4rl_walker_walk_random_64px', 0, 'paper')
    assert scales.overrides_of(cell)['task'] == 'dmc_walker_walk'
    cell = grid.Cell('SeMOPO', 'car_racing_random', 0, 'paper')
    assert scales.overrides_of(cell)['task'] == 'car_racing'


@pytest.mark.parametrize('scale', list(scales.SCALES))
@pytest.mark.parametrize('system', list(grid.SYSTEMS))
def test_presets_make_a_configuration(scale, system):
    config = config_of(system, scale)
    full = config_of(system, 'released')
    assert config.method == full.method
    assert config.separate_wm == full.separate_wm
    if scale in ('demo', 'mini'):
        assert config.steps < full.steps
        assert config.precision == '32'  # no GPU
        assert not config.shadows


def test_small_scales_keep_the_ablations():
    for scale in ('demo', 'mini', 'released', 'paper'):
        se_rs = config_of('Se+RS', scale)
        assert settings.sampling_of(se_rs) == 'random'
        assert set(config_of('SeMOPO', scale).difference(se_rs)) <= {
            'sampling', 'replay.incremental', 'replay.sort_rewards'}
        dissociated = config_of('Se+RS+DRP', scale)
        # At `mini` rewards shape the latents of every method.
        assert set(se_rs.difference(dissociated)) == {
            'disen_scales.reward', *([] if scale == 'mini' else
                                     ['grad_heads'])}


def test_paper_settings_in_small():
    config = config_of('SeMOPO (paper)', 'mini')
    assert config.rssm.discrete == 0
    assert config.offline_penalty_type == 'disagreement'
    assert not config.exo_only_decoder
    # Another number of updates: the small size's own rate.
    assert config.model_opt.lr == config_of('SeMOPO', 'mini').model_opt.lr


def test_hopper_has_its_own_weights():
    cell = grid.Cell('Se+RS+DRP', 'hopper_hop_random', 0, 'released')
    assert scales.overrides_of(cell) == {
        'task': 'dmcdrv_hopper_hop', 'disen_scales.disen_only': '2.0',
        'disen_scales.reward': '30000'}


def test_offline_dv2_has_its_papers_penalty_weight_at_the_papers_scale():
    """Baselines 1.7: the command of SeMOPO computes with 5."""
    presets, found = settings.presets(), {}
    for scale in ('paper', 'released'):
        cell = grid.Cell('Offline DV2', 'walker_walk_random', 0, scale)
        config, _ = presets.parse(scales.arguments(
            cell, Path('data'), Path('run'), None))
        found[scale] = config.offline_lmbd
    assert found == {'paper': 10, 'released': 5}


def test_request_errors_are_one_line():
    for arguments, word in (
            (['--table', '9'], '1, 2, 3'), ([], '--all'),
            (['--table', '1', '--sets', 'walker'], 'data list'),
            (['--table', '1', '--systems', 'TD3'], 'SeMOPO'),
            (['--table', '1', '--seeds', '0'], 'at least 1'),
            (['--table', '1', '--nodes', '0'], 'at least 1'),
            (['--table', '1', '--steps'], 'value'),
            (['--table', '1', '--precison', '32'], 'nearest: precision'),
            (['--table', '1', '--precision', '31'], 'expected one of'),
            (['--table', '1', '--seed', '1'], '--seeds'),
            (['--table', '1', '--offline_di.*', 'x'], '--data'),
            (['--table', '1', '--task', 'dmc_walker_walk'], '--sets'),
            (['--table', '1', '--configs', 'mini'], '--scale'),
            (['--table', '4', '--sets', 'walker_walk_random'], 'table4'),
            (['--table', '1', '3', '--sets', 'walker_walk_random',
              'vd4rl_walker_walk_random_64px'], 'found vd4rl_walker'),
            (['--figure', '4', '--systems', 'BC'], 'found BC')):
        with pytest.raises(UserError) as error:
            request(*arguments)
        assert '\n' not in str(error.value)
        assert word in str(error.value)


def test_data_are_found_in_several_layouts(tmp_path):
    for place in ('lqv_d4rl/walker_walk/random', 'cheetah_run/random',
                  'hopper_hop_medium'):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / 'a.npz').touch()
    names = ['walker_walk_random', 'cheetah_run_random', 'hopper_hop_medium']
    found = scales.locate(names, tmp_path)
    assert list(found) == names
    with pytest.raises(UserError, match=r'1 of 2 missing.*--sets hopper'):
        scales.locate(['hopper_hop_medium', 'hopper_hop_random'], tmp_path)


def test_the_data_of_one_family_are_not_taken_for_the_others(tmp_path):
    for place in ('walker_walk/random', 'built/cartpole_swingup/mixed'):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / 'a.npz').touch()
    assert scales.find_data('walker_walk_random', tmp_path)
    assert scales.find_data('vd4rl_walker_walk_random_64px', tmp_path) is None
    assert scales.find_data('cartpole_swingup_mixed', tmp_path)


def test_table_3_needs_no_runs(tmp_path):
    place = tmp_path / 'walker_walk' / 'random'
    place.mkdir(parents=True)
    (place / 'a.npz').touch()
    asked = request('--table', '3', '--data', str(tmp_path))
    assert asked.cells == ()
    assert len(commands._shown(asked)) == 15
    options, rest = parse('--table', '3', '--data', str(tmp_path), '--out',
                          str(tmp_path / 'out'))
    assert commands.reproduce(options, rest) == 0
    page = (tmp_path / 'out' / 'report' / 'index.html').read_text()
    assert f'data validate {place}' in page


def test_hours_come_from_finished_runs_first(tmp_path):
    cell = grid.Cell('SeMOPO', 'walker_walk_random', 0, 'paper')
    config = plan.configs([cell])[cell.name]
    guess = plan.estimate(cell, config)
    assert guess.hours > 10
    assert 'operations' in guess.basis
    from tests.test_experiments_results import make_row
    presets = list(scales.presets_of_cell(cell))
    rows = [make_row(f'r{i}', scale='paper', presets=presets, hours=hours)
            for i, hours in enumerate((1.0, 2.0, 9.0))]
    other = make_row('r3', scale='paper', presets=[*presets, 'x'], hours=70.0)
    known = plan.estimate(cell, config, [*rows, other])
    assert known.hours == 2.0
    assert known.basis == '3 finished'


def test_a_trained_run_costs_only_its_evaluations():
    from tests.test_experiments_results import make_row
    cell = grid.Cell('SeMOPO', 'walker_walk_random', 0, 'paper',
                     variants=('', grid.COLOUR))
    config = plan.configs([cell])[cell.name]
    rest = plan.estimate(cell, config, [make_row(cell.run(), hours=90.0)])
    assert 0 < rest.hours < 1
    assert rest.basis == 'evaluation alone'


@pytest.mark.parametrize(('name', 'file', 'flags'), [
    ('cartpole_swingup_mixed', 'rows_rung1_first.csv', {}),
    # Its rows are of fewer policy updates than today's preset.
    ('walker_walk_random', 'rows_rung2_2500.csv', {'steps': 2500})])
@pytest.mark.parametrize('system', ['SeMOPO', 'Offline DV2'])
def test_hours_of_small_runs_are_near_what_they_took(
        name, file, flags, system):
    """docs/results/mini.md: two or three at a time on two cores."""
    rows = read_csv(ROOT / 'docs' / 'results' / 'mini' / file)
    took = statistics.median(row.hours for row in rows if row.system == system
                             and row.task == registry.find(name).task)
    cell = grid.Cell(system, name, 0, 'mini')
    config = plan.configs([cell])[cell.name].update(flags, 'test')
    guess = plan.estimate(cell, config)
    assert took / 1.5 < guess.hours < took * 1.5


def test_more_starts_take_more_hours():
    cell = grid.Cell('SeMOPO', 'walker_walk_random', 0, 'mini')
    config = plan.configs([cell])[cell.name]
    one = plan.estimate(cell, config.update({'model_starts': 1}, 'test'))
    # Two are reckoned with; their updates take what other ones of a model do.
    longer = config.update({
        'model_starts': 1, 'offline_model_train_steps':
        config.offline_model_train_steps + 2 * config.model_start_updates},
        'test')
    found = plan.estimate(cell, config).hours
    assert found == pytest.approx(plan.estimate(cell, longer).hours)
    assert found > one.hours


def test_bench_sets_the_speed(tmp_path):
    path = tmp_path / 'bench.json'
    path.write_text(json.dumps({
        'GFLOP': {'fast': {'model_update': 100.0}},
        'seconds': {'model_update': {'fast': [1.0, 2.0, 4.0]}}}))
    assert plan.bench_speed(path) == 50e9
    path.write_text('{}')
    with pytest.raises(UserError, match='bench'):
        plan.bench_speed(path)


def test_plan_prints_hours_and_what_it_will_make(tmp_path, capsys):
    options, rest = parse('--table', '1', '--scale', 'demo', '--plan',
                          '--out', str(tmp_path / 'out'), '--data',
                          str(tmp_path))
    assert commands.reproduce(options, rest) == 0
    printed = capsys.readouterr().out
    assert '28 of 28 runs to do' in printed
    assert 'walker_walk_random: will be made (demo size' in printed
    assert not (tmp_path / 'out').exists()  # a plan leaves nothing behind


def test_plan_counts_the_episodes_that_are_there(tmp_path, capsys):
    folder = tmp_path / 'cartpole_swingup_mixed'
    flags = ['--table', '1', '--scale', 'mini', '--plan', '--systems', 'BC',
             '--data', str(tmp_path), '--out', str(tmp_path / 'out')]
    options, rest = parse(*flags)
    assert commands.reproduce(options, rest) == 0
    assert 'mixed: missing (mini size' in capsys.readouterr().out
    assert plan.frames_of('cartpole_swingup_mixed', 'mini') == 200 * 126
    assert plan.frames_of('walker_walk_random', 'mini') == 60 * 501
    assert plan.frames_of('walker_walk_random', 'paper') == 200 * 501
    folder.mkdir()
    for number in range(3):
        (folder / f'{number}.npz').touch()
    assert commands.reproduce(options, rest) == 0
    assert f'{folder} (3 episodes, mapped: 0.0 GB)' in (
        capsys.readouterr().out)
    assert plan.frames_of('cartpole_swingup_mixed', 'mini', folder) == 3 * 126


def test_plan_names_the_presets_of_each_task(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    options, rest = parse(
        '--table', '1', '--scale', 'mini', '--plan', '--seeds', '1',
        '--systems', 'SeMOPO', '--sets', 'cartpole_swingup_mixed',
        'walker_walk_random', '--data', str(tmp_path))
    assert commands.reproduce(options, rest) == 0
    lines = [line.split('│')[1:3] for line in
             capsys.readouterr().out.splitlines() if '│ SeMOPO' in line]
    assert [presets.strip() for _, presets in lines] == [
        'released mini cartpole_swingup_mixed', 'released mini mini_walker']


def test_a_report_needs_rows_and_good_numbers(tmp_path):
    for flags, word in ((['--only-report'], 'store of results'),
                        (['--paper', str(tmp_path / 'none')], 'none')):
        options, rest = parse('--table', '1', '--scale', 'demo', '--out',
                              str(tmp_path / 'out'), *flags)
        with pytest.raises(UserError, match=word):
            commands.reproduce(options, rest)
    assert not (tmp_path / 'out').exists()


def test_slurm_file_runs_the_same_command(tmp_path):
    command = slurm.same_command(
        ['reproduce', '--table', '1', '--slurm', 'job.sh', '--nodes=2',
         '--serial', '--out', 'my runs'])
    assert command == ['reproduce', '--table', '1', '--out', 'my runs',
                       '--ray', 'auto']
    slurm.write(tmp_path / 'job.sh', command, 2, tmp_path)
    text = (tmp_path / 'job.sh').read_text()
    assert '#SBATCH --nodes=2' in text
    assert f'cd {Path.cwd()}\n' in text  # whence its paths count
    assert "reproduce --table 1 --out 'my runs' --ray auto &" in text


def test_slurm_file_runs_with_stand_ins(tmp_path):
    stand_ins = {'srun': 'echo "$@" >> "$CALLS"', 'sleep': 'true',
                 'scontrol': 'printf "node1\\nnode2\\n"'}
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path / name).chmod(0o755)
    missing = str(tmp_path / 'none')
    slurm.write(tmp_path / 'job.sh', ['results', missing], 2, tmp_path)
    done = subprocess.run(
        ['bash', str(tmp_path / 'job.sh')], capture_output=True, text=True,
        check=False, env={**os.environ, 'CALLS': str(tmp_path / 'calls'),
                          'HOME': str(tmp_path),
                          'PATH': f'{tmp_path}:{os.environ["PATH"]}',
                          'SLURM_JOB_NODELIST': 'node[1-2]',
                          'SLURM_JOB_NUM_NODES': '2',
                          'SLURM_CPUS_PER_TASK': '7'})
    assert done.returncode == 2  # that of run.py
    assert missing in done.stderr
    assert (tmp_path / '.ray' / 'auth_token').exists()
    calls = sorted((tmp_path / 'calls').read_text().splitlines())
    assert all('--cpus-per-task=7' in call for call in calls)
    assert len(calls) == 2
    assert '--exclude=node1' in calls[0]
    assert '--address=node1:6379 --block' in calls[0]
    assert '-w node1' in calls[1]
    assert '--head --port=6379 --block' in calls[1]


def test_registry_has_every_set_of_the_grid():
    for name in sorted(grid.PAPER_SETS):
        assert registry.find(name).name == name


def test_presets_of_a_task_at_a_scale():
    mini = scales.SCALES['mini']
    assert scales.presets_of(mini, 'SeMOPO', 'walker_walk_random') == (
        'released', 'mini', 'mini_walker')
    assert scales.presets_of(mini, 'BC', 'walker_walk_random') == (
        'bc', 'drq_mini')
    assert scales.presets_of(mini, 'SeMOPO', 'cartpole_swingup_mixed') == (
        'released', 'mini', 'cartpole_swingup_mixed')


def test_rows_older_than_a_key_are_not_of_another_configuration(
        tmp_path, capsys):
    found = request('--table', '1', '--scale', 'mini', '--systems', 'SeMOPO',
                    '--seeds', '1', '--out', str(tmp_path))
    cell, = found.cells
    now = plan.configs(found.cells)[cell.name]
    logdir = tmp_path / 'run'
    logdir.mkdir()
    store = ResultStore(tmp_path / 'results.sqlite')
    store.append(Row(
        cell.run(), system='SeMOPO', presets=[], set=cell.set,
        task='cartpole_swingup', level='mixed', seed=0, scale='mini',
        dirty=False, returns=[1.0], config_hash='of fewer keys',
        logdir=str(logdir)))
    commands._warn_changed(found, store)
    assert 'another configuration' in capsys.readouterr().err
    older = {key: value for key, value in now.flat().items()
             if not key.startswith('model_start')}
    (logdir / 'config.yaml').write_text(json.dumps(older))
    commands._warn_changed(found, store)
    assert capsys.readouterr().err == ''
    older['disen_scales.kl_disen'] = 3.0
    (logdir / 'config.yaml').write_text(json.dumps(older))
    commands._warn_changed(found, store)
    assert 'another configuration' in capsys.readouterr().err
