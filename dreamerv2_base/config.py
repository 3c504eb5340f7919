"""Typed configuration: YAML presets, dotted and regex overrides.

A configuration is an immutable tree. `defaults` is complete; presets and
flags may only change keys that exist, to values of the same type.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

Value = Any  # bool, int, float, str or a list of one of them


class Config(Mapping[str, Any]):
    """An immutable tree of settings: `config.rssm.deter`, `config['seed']`.

    Nested settings are Configs too and unpack as keywords (`**config.rssm`).
    """

    def __init__(self, tree: Mapping[str, Any]):
        self._tree = {key: Config(value) if isinstance(value, Mapping)
                      else value for key, value in tree.items()}

    def __getitem__(self, key: str) -> Any:
        value: Any = self
        for part in key.split('.'):
            value = value._tree[part]
        return value

    def __getattr__(self, key: str) -> Any:
        if key.startswith('_'):
            raise AttributeError(key)
        try:
            return self._tree[key]
        except KeyError:
            raise AttributeError(f'no setting {key!r}') from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def flat(self) -> dict[str, Value]:
        """All leaves by dotted key, in file order."""
        leaves: dict[str, Value] = {}
        for key, value in self._tree.items():
            if isinstance(value, Config):
                leaves.update(
                    {f'{key}.{k}': v for k, v in value.flat().items()})
            else:
                leaves[key] = value
        return leaves

    def nested(self) -> dict[str, Any]:
        """The tree as plain dicts."""
        return {key: value.nested() if isinstance(value, Config) else value
                for key, value in self._tree.items()}

    def update(self, changes: Mapping[str, Any],
               source: str = 'update') -> Config:
        """A copy with changed leaves; keys may be dotted, nested or regex.

        Raises UserError for unknown keys (naming the nearest) and for values
        of another type (naming `source`).
        """
        leaves = self.flat()
        for pattern, value in _leaves(changes).items():
            for key in _matches(pattern, leaves, source):
                leaves[key] = _convert(leaves[key], value, key, source)
        return Config(_nest(leaves))

    def matching(self, pattern: str) -> list[str]:
        """Keys that a dotted key or a regex names; none is no error here."""
        try:
            return _matches(pattern, self.flat(), '')
        except UserError:
            return []

    def difference(self, other: Config) -> dict[str, tuple[Value, Value]]:
        """Keys whose values differ: {key: (ours, theirs)}."""
        mine, theirs = self.flat(), other.flat()
        keys = [*mine, *(key for key in theirs if key not in mine)]
        return {key: (mine.get(key), theirs.get(key)) for key in keys
                if mine.get(key) != theirs.get(key)}

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML."""
        with whole(path) as partial, partial.open('w') as file:
            YAML().dump(self.nested(), file)


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML (or JSON) file of settings. Raises UserError naming the file."""
    try:
        found = YAML(typ='safe', pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UserError(f'expected a settings file at {path}, found none; '
                        'give an existing file') from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, 'problem_mark', '')
        raise UserError(f'{path}: expected YAML, found a syntax error '
                        f'{where}; mend the file') from None
    if not isinstance(found, dict):
        raise UserError(
            f'{path}: expected a mapping of settings, found '
            f'{"an empty file" if found is None else type(found).__name__}; '
            'restore it, or delete it: the command that made it writes it '
            'again')
    return found


def load_config(path: Path) -> Config:
    """A complete configuration that `Config.save` wrote."""
    return Config(read_yaml(path))


class Presets:
    """The blocks of a configs.yaml: `defaults` and named presets."""

    def __init__(self, blocks: Mapping[str, Mapping[str, Any]], path: Path):
        self._path = path
        self._blocks = {key: value or {} for key, value in blocks.items()}
        self.defaults = Config(self._blocks.pop('defaults'))

    @classmethod
    def read(cls, path: Path) -> Presets:
        return cls(read_yaml(path), path)

    @property
    def names(self) -> list[str]:
        return list(self._blocks)

    def apply(self, config: Config, names: Sequence[str],
              flag: str = '--configs') -> Config:
        """The config with presets applied in order.

        A preset may start with `based_on: name` to build on another, which
        is left out where it has been applied before: `se_rs debug` is the
        ablation in small, although `debug` is based on `released`. One that
        only makes sense for some methods says so with `after: [names]`, to
        which the command line is held (`parse`).
        Raises UserError for an unknown preset, naming the nearest and the
        flag that gave it.
        """
        return self._apply(config, names, set(), flag)

    def _apply(self, config: Config, names: Sequence[str],
               done: set[str], flag: str) -> Config:
        for name in names:
            if name == 'defaults':
                config = self.defaults
                done.clear()
                continue
            if name not in self._blocks:
                raise UserError(
                    f'{flag}: expected presets of {self._path.name}, found '
                    f'{name!r}{_nearest(name, self._blocks)}; known: '
                    f'{", ".join(self._blocks)}')
            block = dict(self._blocks[name])
            block.pop('after', None)
            bases = _listed(block.pop('based_on', []))
            config = self._apply(
                config, [b for b in bases if b not in done], done, flag)
            done.add(name)
            config = config.update(block, f'{self._path.name}: {name}')
        return config

    def parse(self, arguments: Sequence[str]) -> tuple[Config, list[str]]:
        """Flags -> config and the preset names that were given.

        `--configs a b` names presets; every other flag is a key (dotted, or
        a regular expression) followed by its value or, for lists, values.
        """
        flags = parse_flags(arguments)
        names = [str(name) for name in flags.pop('configs', [])]
        config = self.apply(self.defaults, names)
        self._expect_order(names)
        return config.update(flags, 'command line'), names

    def _expect_order(self, names: Sequence[str]) -> None:
        """Raises UserError for a preset without one that it comes `after`:
        it would change keys of a method that is not trained."""
        done: set[str] = set()
        for name in names:
            after = _listed(self._blocks.get(name, {}).get('after', []))
            if after and not done & set(after):
                raise UserError(
                    f'--configs: expected {name} after one of '
                    f'{", ".join(after)}, found {" ".join(names)}; give '
                    f'--configs {after[0]} {name}')
            done |= self._with_bases(name)

    def _with_bases(self, name: str) -> set[str]:
        bases = _listed(self._blocks.get(name, {}).get('based_on', []))
        return {name}.union(*map(self._with_bases, bases))


# A key or a regex of keys; values may be negative numbers.
_FLAG = re.compile(r'--[A-Za-z_.(\[^]')


def parse_flags(arguments: Sequence[str]) -> dict[str, list[str]]:
    """`--key value …` and `--key=value` -> {key: [value, …]}, strings.

    Raises UserError for a value without a key and a key without a value.
    """
    flags: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if _FLAG.match(argument):
            key, _, value = argument[2:].partition('=')
            flags[key] = [value] if value else []
        elif key is None:
            raise UserError(f'command line: expected a flag --key, found '
                            f'{argument!r}; see run.py train --help')
        else:
            flags[key].append(argument)
    for key, values in flags.items():
        if not values:
            raise UserError(f'--{key}: expected a value, found none; give '
                            f'--{key} VALUE')
    return flags


def repeated_flags(arguments: Sequence[str]) -> list[str]:
    """What a user should know of flags that were given more than once."""
    names = [word[2:].partition('=')[0] for word in arguments
             if _FLAG.match(word)]
    return [f'--{name} was given {names.count(name)} times: the last counts; '
            f'several values go after one --{name}'
            for name in dict.fromkeys(names) if names.count(name) > 1]


def _leaves(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_leaves(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        *parents, last = key.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _matches(pattern: str, leaves: Mapping[str, Any],
             source: str) -> list[str]:
    if pattern in leaves:
        return [pattern]
    found = []
    if re.search(r'[\\*^$+?()\[\]|]', pattern):
        try:
            found = [key for key in leaves if re.fullmatch(pattern, key)]
        except re.error:
            found = []
    if not found:
        raise UserError(
            f'{source}: expected a known key, found {pattern!r}'
            f'{_nearest(pattern, leaves)}; see configs.yaml for all keys')
    return found


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    names = {*known, 'configs'} - {name}
    close = difflib.get_close_matches(name, sorted(names), 1, 0.5)
    if not close:  # a key given without its group: `deter` for `rssm.deter`
        close = [key for key in known if key.split('.')[-1] == name][:1]
    return f' (nearest: {close[0]})' if close else ''


def _convert(old: Value, new: Any, key: str, source: str) -> Value:
    if isinstance(old, list):
        values = new if isinstance(new, list | tuple) else [new]
        if len(values) == 1 and isinstance(values[0], str):
            values = values[0].split(',')
        sample = old[0] if old else ''
        return [_scalar(sample, value, key, source) for value in values]
    if isinstance(new, list | tuple):
        if len(new) != 1:
            raise UserError(f'{source}: {key}: expected one value, found '
                            f'{len(new)}: {list(new)}; give --{key} VALUE')
        new = new[0]
    return _scalar(old, new, key, source)


def _integer(value: Any) -> int:
    """3 of 3, '3', 3.0 and '3e0'. Raises ValueError for others."""
    if isinstance(value, bool):
        raise ValueError
    try:
        return int(str(value))  # a float would round a long one
    except ValueError:
        if not float(value).is_integer():
            raise
        return int(float(value))


def _scalar(old: Any, new: Any, key: str, source: str) -> Any:
    kind = type(old)
    try:
        if kind is bool:
            return {'true': True, 'false': False}[str(new).lower()]
        if kind is int:
            return _integer(new)
        if kind is float:
            number = float(new)
            if isinstance(new, bool) or not math.isfinite(number):
                raise ValueError
            return number
        return str(new)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise UserError(
            f'{source}: {key}: expected {kind.__name__} (as {old!r}), found '
            f'{new!r}; give --{key} {old}') from None
