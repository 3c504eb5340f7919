"""Writes environment.yml, so that conda installs what `make env` installs.

The names come from tools/requirements.in, the versions from requirements.lock,
which also stands in environment.yml as pip's constraint: packages that nobody
asks for by name have their locked version under conda too. Needs no package,
so any Python runs it: `python -m tools.lock`.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HEADER = '''\
# Written by `make environment.yml` from tools/requirements.in and
# requirements.lock: change those. On a GPU machine, afterwards:
#   conda run -n semopo pip install -r requirements-gpu.lock
name: semopo
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      - -c requirements.lock
'''


def normalized(name: str) -> str:
    """A package's name as PyPI compares it (ruamel.yaml: ruamel-yaml)."""
    return re.sub(r'[-_.]+', '-', name).lower()


def requirement_lines(path: Path) -> list[str]:
    """The lines of a requirements file, without comments and blank ones."""
    lines = (line.partition('#')[0].strip()
             for line in path.read_text('utf-8').splitlines())
    return [line for line in lines if line]


def direct_names(path: Path) -> list[str]:
    """Normalized names of what tools/requirements.in asks for, in order."""
    return [normalized(re.split(r'[^\w.-]', line)[0])
            for line in requirement_lines(path)]


def locked(path: Path) -> dict[str, str]:
    """Normalized name -> version of a lock, files it includes (-r) too.

    Raises ValueError for a line that is no pin and for a package named twice.
    """
    pins: dict[str, str] = {}
    for line in requirement_lines(path):
        if line.startswith('-r '):
            found = locked(path.parent / line[3:].strip())
        else:
            pin = re.fullmatch(r'([\w.-]+)==([\w.]+)( *;.*)?', line)
            if pin is None:
                raise ValueError(
                    f'{path.name}: expected NAME==VERSION, found {line!r}')
            found = {normalized(pin[1]): pin[2]}
        if twice := pins.keys() & found.keys():
            raise ValueError(f'{path.name}: pinned twice: {sorted(twice)}')
        pins |= found
    return pins


def environment_yml(names: list[str], pins: dict[str, str]) -> str:
    """Text of environment.yml: `names` at the versions of `pins`.

    Raises KeyError with the name that the lock has not.
    """
    return HEADER + ''.join(
        f'      - {name}=={pins[name]}\n' for name in names)


def main() -> None:
    """Write environment.yml into the checkout."""
    names = direct_names(ROOT / 'tools' / 'requirements.in')
    text = environment_yml(names, locked(ROOT / 'requirements.lock'))
    (ROOT / 'environment.yml').write_text(text, 'utf-8')


if __name__ == '__main__':
    main()
