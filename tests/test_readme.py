"""Commands of the README and docs/reproducing.md are ones of run.py."""

from __future__ import annotations

import re
import shlex

import pytest

import run
from semopo_tf import settings
from tests.helpers import ROOT

README = (ROOT / 'README.md').read_text()
REPRODUCING = (ROOT / 'docs' / 'reproducing.md').read_text()
NAMES = {*run.COMMANDS, *(
    name for names in run.MODULES.values() for name in names)}


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
    options, rest = run.parser(given=given).parse_known_args(given)
    assert options.command in NAMES
    if options.command in ('train', 'doctor', 'collect'):
        settings.resolve(rest)
    else:
        settings.presets().parse(rest)


def test_every_command_of_run_py_is_explained():
    for name in sorted(NAMES):
        assert f'run.py {name}' in README, name


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    targets = re.findall(r'^make (\w+)', README, re.M)
    assert len(targets) >= 4
    for target in targets:
        assert re.search(rf'^{target}:', makefile, re.M), target
