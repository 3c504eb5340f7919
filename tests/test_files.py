"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_writable, whole, write_json
from tests.helpers import ROOT


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'a.md'
    path.write_text('old')
    with whole(path) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith('.')
        partial.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_changes_nothing(tmp_path, error):
    path = tmp_path / 'a.md'
    path.write_text('old')

    def write():
        with whole(path) as partial:
            partial.write_text('ne')
            raise error
    with pytest.raises(error):
        write()
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_forgetting_to_write_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole(tmp_path / 'a.md'):
        pass
    assert not list(tmp_path.iterdir())


def test_names_that_differ_in_their_ending_do_not_meet(tmp_path):
    with (whole(tmp_path / 'a.md') as one, whole(tmp_path / 'a.tex') as two):
        one.write_text('1')
        two.write_text('2')
    assert (tmp_path / 'a.md').read_text() == '1'
    assert (tmp_path / 'a.tex').read_text() == '2'


def test_what_a_killed_process_leaves_is_found_by_no_pattern(tmp_path):
    path = tmp_path / 'a.npz'
    code = ('import os, pathlib, signal, sys\n'
            'from dreamerv2_base.files import whole\n'
            'with whole(pathlib.Path(sys.argv[1])) as partial:\n'
            '    partial.write_text("half of something long")\n'
            '    os.kill(os.getpid(), signal.SIGKILL)\n')
    done = subprocess.run([sys.executable, '-c', code, str(path)], cwd=ROOT,
                          check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.glob('*.npz'))
    os.chmod(next(tmp_path.iterdir()), 0o444)  # whatever it is
    with whole(path) as partial:
        partial.write_text('short')
    assert path.read_text() == 'short'
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told_before(tmp_path):
    expect_writable(tmp_path / 'new' / 'a.npz')
    assert not [*(tmp_path / 'new').iterdir()]
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'file/a\.npz: expected a place'):
        expect_writable(tmp_path / 'file' / 'a.npz')


def test_json_is_written_whole(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'a': [1, None]})
    assert json.loads(path.read_text()) == {'a': [1, None]}
    assert path.read_text().endswith('}\n')
    with pytest.raises(TypeError):
        write_json(path, {'a': {1, 2}})
    assert json.loads(path.read_text()) == {'a': [1, None]}
    assert list(tmp_path.iterdir()) == [path]
