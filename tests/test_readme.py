"""Commands of the README and docs/reproducing.md are ones of run.py."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys

import pytest

import run
from dreamerv2_base.config import Config, read_yaml
from dreamerv2_base.errors import UserError
from semopo_tf import settings
from tests.helpers import ROOT

README = (ROOT / 'README.md').read_text()
REPRODUCING = (ROOT / 'docs' / 'reproducing.md').read_text()


def commands_of(parser, before=()):
    """Every command, its words, and its parser; sub-commands, too."""
    found = {before: parser} if before else {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found.update(commands_of(inner, (*before, name)))
    return found


COMMANDS = commands_of(run.parser())
NAMES = {words[0] for words in COMMANDS}


def commands():
    text = re.sub(r'\\\n\s*', '', README + REPRODUCING)
    blocks = re.findall(r'```sh\n(.*?)```', text, re.S)
    lines = [line.split('  #')[0].strip().removeprefix('.venv/bin/')
             for block in blocks for line in block.splitlines()]
    return [line.removeprefix('python run.py ') for line in lines
            if line.startswith('python run.py ') and '…' not in line]


def test_there_are_commands():
    assert len(commands()) >= 7


@pytest.mark.parametrize('command', commands())
def test_command_is_accepted(command):
    given = shlex.split(command)
    options, rest = run.parser().parse_known_args(given)
    assert options.command in NAMES
    if options.command in ('train', 'doctor', 'collect'):
        settings.resolve(rest)
    else:
        settings.presets().parse(rest)


def test_every_command_of_run_py_is_explained():
    for name in sorted(NAMES):
        assert f'run.py {name}' in README, name


def test_every_command_is_known_here():
    assert NAMES >= {'train', 'evaluate', 'collect', 'doctor', 'report',
                     'export', 'diff', 'bench', 'convert-checkpoint', 'data',
                     'reproduce', 'results', 'measure'}
    assert {('data', name) for name in (
        'list', 'validate', 'describe', 'convert', 'build')} <= {*COMMANDS}


# What must follow the words of a command.
NEEDED = {
    'evaluate': 'RUN', 'report': 'RUN', 'export': 'RUN OUT',
    'diff': '--presets paper released', 'results': 'OUT',
    'convert-checkpoint': 'IN OUT --config FILE',
    'data validate': 'PATH', 'data describe': 'PATH',
    'data convert': 'SOURCE TARGET --to npz', 'data build': 'SET',
    'measure': 'RUN --names probe --out FILE.npz'}


@pytest.mark.parametrize('words', [
    words for words, inner in COMMANDS.items() if inner.get_default('call')],
    ids=' '.join)
def test_every_command_shows_its_traceback_on_demand(words, monkeypatch):
    def fails(options, rest):
        assert rest == []
        raise UserError('no')

    given = [*words, *NEEDED.get(' '.join(words), '').split()]
    assert '--debug' in COMMANDS[words].format_help()
    for line, code in (([*given, '--debug'], None), (given, 2),
                       (['--debug', *given], None)):
        top = run.parser()
        commands_of(top)[words].set_defaults(call=fails)
        with monkeypatch.context() as patch:
            patch.setattr(run, 'parser', lambda top=top: top)
            if code:
                assert run.main(line) == code
                continue
            with pytest.raises(UserError, match=r'^no$'):
                run.main(line)


def test_help_is_there_at_once():
    """No command is imported before it is given."""
    heavy = ('tensorflow', 'cv2', 'h5py', 'mujoco', 'dm_control', 'gym',
             'matplotlib', 'scipy', 'ray', 'sqlite3', 'semopo_tf.commands',
             'semopo_tf.environments', 'semopo_tf.settings',
             'semopo_tf.experiments.commands', 'datasets.build')
    code = ('import sys, run\n'
            'try: run.main(sys.argv[1:])\n'
            'except SystemExit: pass\n'
            f'found = {{*{heavy}}} & {{*sys.modules}}\n'
            'sys.exit(", ".join(found) or None)\n')
    for words in ((), ('data', ), ('reproduce',), ('measure',)):
        done = subprocess.run(
            [sys.executable, '-c', code, *words, '--help'], cwd=ROOT,
            check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'usage: run.py' in done.stdout


def test_help_of_a_configured_command_lists_keys(tmp_path):
    keys = COMMANDS['train',].format_help()
    assert '  offline_lmbd: 5.0            # its weight' in keys
    assert '\n  SeMOPO: released, paper\n' in keys
    groups = settings.preset_groups()
    assert [name for names in groups.values() for name in names] == list(
        settings.presets().names)
    assert groups['LOMPO'] == ['lompo', 'lompo_demo', 'lompo_debug']
    assert '  offline_lmbd:' not in COMMANDS['report',].format_help()
    # The whole block, and none of the presets behind it.
    (tmp_path / 'keys.yaml').write_text(keys.split('--group.key VALUE:\n')[1])
    listed = Config(read_yaml(tmp_path / 'keys.yaml'))
    assert listed.flat().keys() == settings.presets().defaults.flat().keys()


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    targets = re.findall(r'^make (\w+)', README, re.M)
    assert len(targets) >= 4
    for target in targets:
        assert re.search(rf'^{target}:', makefile, re.M), target
