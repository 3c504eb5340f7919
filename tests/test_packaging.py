"""The locks, environment.yml, Makefile and installer agree with each other."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from dreamerv2_base.envs import opengl
from tools import lock

ROOT = Path(__file__).resolve().parent.parent
DIRECT = ROOT / 'tools' / 'requirements.in'


@pytest.fixture(scope='module')
def pins() -> dict[str, str]:
    return lock.locked(ROOT / 'requirements.lock')


def environment() -> dict:
    return YAML(typ='safe').load(
        (ROOT / 'environment.yml').read_text('utf-8'))


def pip_part() -> list[str]:
    part, = (entry['pip'] for entry in environment()['dependencies']
             if isinstance(entry, dict))
    return part


def closure(lines: list[str]) -> set[str]:
    """Names of what `lines` bring along, from the installed metadata."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in lines]
    while todo:
        wanted = todo.pop()
        for extra in ('', *wanted.extras):
            node = (lock.normalized(wanted.name), extra)
            if node in seen:
                continue
            seen.add(node)
            needs = map(Requirement, metadata.requires(wanted.name) or [])
            todo += [need for need in needs if need.marker is None
                     or need.marker.evaluate({'extra': extra})]
    return {name for name, _ in seen}


def test_locked_versions_are_those_that_were_measured(pins):
    # Narrower than the requirements: the last that renders beside Mesa.
    assert pins['tensorflow'] == '2.19.1'
    assert pins['tensorflow-probability'] == '0.25.0'


def test_exactly_one_package_per_import_name(pins):
    assert not pins.keys() & {'tensorflow-cpu', 'pygame', 'box2d-py',
                              'opencv-python'}


def test_direct_requirements_allow_the_locked_versions(pins):
    for line in lock.requirement_lines(DIRECT):
        wanted = Requirement(line)
        version = pins[lock.normalized(wanted.name)]
        assert version in wanted.specifier, line


def test_lock_is_the_closure_of_the_direct_requirements(pins):
    only_older = {'tensorflow-io-gcs-filesystem'}  # a marker: Python < 3.12
    found = closure(lock.requirement_lines(DIRECT))
    assert found - only_older == pins.keys() - only_older


def test_environment_yml_is_what_the_lock_gives(pins):
    written = (ROOT / 'environment.yml').read_text('utf-8')
    expected = lock.environment_yml(lock.direct_names(DIRECT), pins)
    assert written == expected, 'run: make environment.yml'


def test_environment_yml_is_bound_to_the_lock():
    assert pip_part()[0] == '-c requirements.lock'
    conda = [entry for entry in environment()['dependencies']
             if isinstance(entry, str)]
    assert conda == ['python=3.11', 'pip']


def test_gpu_lock_adds_only_nvidia_wheels(pins):
    more = lock.locked(ROOT / 'requirements-gpu.lock')
    assert pins.items() <= more.items()
    added = more.keys() - pins.keys()
    assert added
    assert all(re.fullmatch(r'nvidia-[a-z-]+-cu12', name) for name in added)


def test_gpu_wheels_are_the_ones_tensorflow_names():
    more = lock.locked(ROOT / 'requirements-gpu.lock')
    wanted = [Requirement(line) for line in metadata.requires('tensorflow')]
    wheels = {lock.normalized(one.name): one.specifier for one in wanted
              if one.marker and one.marker.evaluate({'extra': 'and-cuda'})
              and not one.marker.evaluate({'extra': ''})}
    assert wheels.keys() == {n for n in more if n.startswith('nvidia-')}
    assert all(more[name] in versions for name, versions in wheels.items())


@pytest.mark.parametrize(('text', 'message'), [
    ('numpy>=1.26', 'expected NAME==VERSION'),
    ('numpy==1.26.4\nNumPy==1.26.4', 'pinned twice'),
])
def test_a_lock_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / 'some.lock'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        lock.locked(path)


def dry_run(*words: str) -> str:
    done = subprocess.run(
        ['make', '-n', '--always-make', *words], cwd=ROOT, text=True,
        capture_output=True, check=True)
    return done.stdout


def test_make_targets_run_what_the_readme_says():
    demo = re.findall(r'run\.py (.*)', dry_run('demo'))
    assert demo == ['collect --configs demo', 'train --configs demo']
    tests = dry_run('test')
    assert ("-m pytest -n 2 --dist loadfile --no-loadscope-reorder "
            "-m 'not slow and not gpu' "
            'tests') in tests
    assert "-m pytest -n 1 " in dry_run('test', 'MARK=gpu')
    assert 'tools/install.sh' in tests
    assert 'ruff check' in dry_run('lint')
    assert 'mypy' in dry_run('lint')
    assert 'requirements-gpu.lock' in dry_run('env', 'GPU=1')
    assert 'requirements-gpu.lock' not in dry_run('env')
    assert 'tools/install.sh' not in dry_run('test', 'PY=python')


def test_ci_runs_the_tests():
    script = (ROOT / '.ci' / 'run')
    assert os.access(script, os.X_OK)
    assert script.read_text('utf-8').splitlines()[-1] == 'make test'


def install(folder: Path, python: str) -> subprocess.CompletedProcess:
    """tools/install.sh with commands of `folder`/bin before the real ones."""
    path = f'{folder / "bin"}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.run(
        ['sh', str(ROOT / 'tools' / 'install.sh'), str(folder / 'env'),
         'requirements.lock'], cwd=ROOT, text=True, capture_output=True,
        check=False, env={'PATH': path, 'PYTHON': python})


def test_installer_and_program_name_the_same_opengl():
    script = (ROOT / 'tools' / 'install.sh').read_text('utf-8')
    packages = re.search(r"^opengl_packages='(.*)'$", script, re.M)[1]
    assert opengl.remedy('egl', 'a reason like no other').endswith(packages)


def fake_python(folder: Path, pip_status: int) -> str:
    """An interpreter that does nothing: `-m venv X` copies it into X/bin."""
    program = folder / 'bin' / 'fakepython'
    program.parent.mkdir()
    program.write_text(f'''#!/bin/sh
case "$*" in
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/new";;
  "-m pip install"*) exit {pip_status};;
esac
''')
    program.chmod(0o755)
    return str(program)


def test_an_image_gets_every_file_of_a_checkout():
    """With .git, which says the commit; without what is only here."""
    ignored = (ROOT / '.dockerignore').read_text('utf-8').split()
    folders = ('datasets', 'docs', 'dreamerv2_base', 'semopo_tf', 'tests',
               'tools')
    inside = [path for folder in folders
              for path in (ROOT / folder).rglob('*.*')
              if '__pycache__' not in path.parts]
    assert '.venv' in ignored
    # Without `**/` a pattern is of the checkout's own folder.
    for path in (ROOT / '.git', ROOT / 'run.py', *inside):
        parts = path.relative_to(ROOT).parts
        for pattern in ignored:
            name = pattern.removeprefix('**/')
            among = parts if name != pattern else parts[:1]
            assert not fnmatch.filter(among, name), (path, pattern)


def test_installer_names_the_python_it_wants(tmp_path):
    done = install(tmp_path, 'no-such-python')
    assert done.returncode == 2
    assert re.fullmatch(
        r'error: Python: expected 3\.11 or 3\.12.*no-such-python.*PYTHON=.*\n',
        done.stderr)


def test_interrupted_installation_is_started_anew(tmp_path):
    python = fake_python(tmp_path, pip_status=1)
    assert install(tmp_path, python).returncode != 0
    assert (tmp_path / 'env' / '.incomplete').exists()
    (tmp_path / 'env' / 'half-a-package').touch()

    shutil.rmtree(tmp_path / 'bin')
    done = install(tmp_path, fake_python(tmp_path, pip_status=0))
    assert done.returncode == 0, done.stderr
    assert 'starting anew' in done.stdout
    assert not (tmp_path / 'env' / '.incomplete').exists()
    assert not (tmp_path / 'env' / 'half-a-package').exists()


def test_finished_installation_is_kept(tmp_path):
    python = fake_python(tmp_path, pip_status=0)
    assert install(tmp_path, python).returncode == 0
    (tmp_path / 'env' / 'new').unlink()
    assert install(tmp_path, python).returncode == 0
    assert not (tmp_path / 'env' / 'new').exists()
