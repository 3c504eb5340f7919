"""Tables 1-5 and figures 2-10 of the paper as data, and the runs they need.

Sources: specification of the baselines 10.2, 10.4-10.8. What the paper leaves
open (docs/reproducing.md names each choice): the sets of Table 4, which two
V-D4RL tasks figure 9 shows, Offline DV2's settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from datasets.registry import LQV_EPISODES, LQV_TASKS, VD4RL_LEVELS
from dreamerv2_base.errors import UserError

LEVELS = tuple(LQV_EPISODES)
FIGURE_TASKS = LQV_TASKS[:3]                 # the 9 sets of figures 4 and 10
VD4RL_FIGURE_TASKS = ('walker_walk', 'cheetah_run')
COLOUR = 'colour'                            # the variant of Table 2


@dataclass(frozen=True)
class System:
    """A method as the paper names it.

    Attributes:
      name: in tables and rows. slug: in paths.
      preset: of configs.yaml, at published settings.
      family: 'dreamer', 'lompo' or 'drq': which scale presets fit.
      quantities: what is measured after training (experiments.quantities).
    """

    name: str
    slug: str
    preset: str
    family: str = 'dreamer'
    quantities: tuple[str, ...] = ()


# What `run.py measure` knows, in the order in which it is measured.
QUANTITIES = {
    'uncertainty': 'u, md and vlp of the ensemble on states of the data',
    'frames': 'frames with the uncertainty of the transition into each',
    'reconstruction': 'frames and what the model makes of them',
    'entropy': 'action entropy of batches under both samplings',
    'action_information': 'nats that a stream\'s next state owes to actions',
    'separation': 'the learned mask against the simulator\'s segmentation',
    'probe': 'what a linear map reads from the features',
    'action_effects': 'what actions earn: the model beside the simulator',
}
_STREAMS = ('uncertainty', 'frames', 'reconstruction')
NEED_SIMULATOR = ('separation', 'probe', 'action_effects')

SYSTEMS: dict[str, System] = {known.name: known for known in (
    System('SeMOPO', 'semopo', 'released',
           quantities=(*_STREAMS, 'entropy', *NEED_SIMULATOR)),
    # At small scales beside the released settings; at scale `paper` it is
    # what 'SeMOPO' means.
    System('SeMOPO (paper)', 'semopo_paper', 'paper',
           quantities=(*_STREAMS, *NEED_SIMULATOR)),
    System('Offline DV2', 'offline_dv2', 'offline_dv2',
           quantities=(*_STREAMS, 'action_effects')),
    System('LOMPO', 'lompo', 'lompo', 'lompo', ('uncertainty',)),
    System('DrQ+BC', 'drq_bc', 'drq_bc', 'drq'),
    System('DrQ+CQL', 'drq_cql', 'drq_cql', 'drq'),
    System('BC', 'bc', 'bc', 'drq'),
    System('InfoGating', 'infogating', 'infogating', 'drq'),
    System('Se+RS', 'se_rs', 'se_rs', quantities=('reconstruction',)),
    System('Se+RS+DRP', 'se_rs_drp', 'se_rs_drp',
           quantities=('reconstruction',)))}

# A variant of a system that a user named: 'SeMOPO [mine]'.
LABEL = re.compile(r'(.+) \[([a-z0-9_]+)\]')

# Two names of one and the same run: trained once, kept under the second.
SAME = {'Se+CS': 'SeMOPO', 'Offline DV2+RS': 'Offline DV2'}


@dataclass(frozen=True)
class Item:
    """A table or figure: the runs it is made of.

    `systems` × `sets` × seeds, evaluated in every variant of `variants`.
    """

    name: str
    title: str
    systems: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    variants: tuple[str, ...] = ('',)


def _lqv(tasks: Iterable[str], levels: Iterable[str] = LEVELS,
         ) -> tuple[str, ...]:
    return tuple(f'{task}_{level}' for task in tasks for level in levels)


def _vd4rl(tasks: Iterable[str], levels: Iterable[str]) -> tuple[str, ...]:
    return tuple(f'vd4rl_{task}_{level}_64px' for task in tasks
                 for level in levels)


_TABLE_1 = ('SeMOPO', 'Offline DV2', 'LOMPO', 'DrQ+BC', 'DrQ+CQL', 'BC',
            'InfoGating')
_ABLATIONS = ('SeMOPO', 'Se+RS', 'Se+RS+DRP', 'Offline DV2')
_NINE = _lqv(FIGURE_TASKS)

ITEMS: dict[str, Item] = {item.name: item for item in (
    Item('table1', 'Normalised returns on LQV-D4RL', _TABLE_1,
         _lqv(LQV_TASKS)),
    Item('table2', 'Returns with colour backgrounds',
         ('SeMOPO', 'Offline DV2', 'DrQ+BC'),
         _lqv(('walker_walk', 'cheetah_run'), ('random', 'medium_replay')),
         ('', COLOUR)),
    Item('table3', 'Returns of the data', (), _lqv(LQV_TASKS)),
    Item('table4', 'Returns on V-D4RL', ('SeMOPO',),
         _vd4rl(('walker_walk', 'cheetah_run', 'humanoid_walk'),
                VD4RL_LEVELS)),
    Item('table5', 'Raw returns on LQV-D4RL', _TABLE_1, _lqv(LQV_TASKS)),
    Item('figure2', 'Uncertainty of SeMOPO and Offline DV2',
         ('SeMOPO', 'Offline DV2'), _NINE),
    Item('figure3', 'Frames and their uncertainty',
         ('SeMOPO', 'Offline DV2'), _lqv(('cheetah_run',))),
    Item('figure4', 'Probability of improvement', _ABLATIONS, _NINE),
    Item('figure5', 'Endogenous reconstructions', _ABLATIONS, _NINE),
    Item('figure6', 'Action entropy of two samplings', ('SeMOPO',), _NINE),
    Item('figure7', 'Uncertainty of three methods',
         ('SeMOPO', 'Offline DV2', 'LOMPO'), _NINE),
    Item('figure8', 'Endogenous and exogenous uncertainty', ('SeMOPO',),
         _NINE),
    Item('figure9', 'Gradient norms of the model',
         ('SeMOPO', 'Offline DV2'),
         _NINE + _vd4rl(VD4RL_FIGURE_TASKS, LEVELS)),
    Item('figure10', 'Performance profiles', _ABLATIONS, _NINE))}

OPEN = ('table1', 'table5')  # show any system that is asked for
PAPER_SETS = frozenset(name for item in ITEMS.values() for name in item.sets)


@dataclass(frozen=True)
class Cell:
    """One training run and the evaluations it is wanted in.

    `items` are the tables and figures that use it.
    """

    system: str
    set: str
    seed: int
    scale: str
    variants: tuple[str, ...] = ('',)
    items: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`set/system/seed`, also its path below the runs' folder."""
        return f'{self.set}/{system(self.system).slug}/seed{self.seed}'

    def run(self, variant: str = '') -> str:
        """Id of the row of a variant: `scale/set/system/seed[@variant]`."""
        return f'{self.scale}/{self.name}{f"@{variant}" if variant else ""}'

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of all rows that are wanted."""
        return tuple(self.run(variant) for variant in self.variants)


def base(name: str) -> str:
    """The system that a labelled one is a variant of; else its own name."""
    found = LABEL.fullmatch(name)
    return found[1] if found else name


def system(name: str) -> System:
    """A system of the grid, labelled or not. Raises KeyError for another."""
    found = LABEL.fullmatch(name)
    if found is None:
        return SYSTEMS[name]
    of = SYSTEMS[found[1]]
    return replace(of, name=name, slug=f'{of.slug}-{found[2]}')


def items_named(tables: Sequence[int], figures: Sequence[int],
                everything: bool = False) -> list[Item]:
    """Items by number. Raises UserError for one that is not in the paper."""
    if everything:
        return list(ITEMS.values())
    found = []
    for kind, numbers in (('table', tables), ('figure', figures)):
        for number in numbers:
            if f'{kind}{number}' not in ITEMS:
                known = [name.removeprefix(kind) for name in ITEMS
                         if name.startswith(kind)]
                raise UserError(
                    f'--{kind}: expected one of {", ".join(known)}, found '
                    f'{number}; see docs/reproducing.md for what each is')
            found.append(ITEMS[f'{kind}{number}'])
    if not found:
        raise UserError('reproduce: expected what to reproduce, found '
                        'nothing; give --table N, --figure N or --all')
    return found


def system_named(name: str) -> System:
    """A system by name or slug, in any case. Raises UserError."""
    wanted = name.lower()
    for alias, target in SAME.items():
        if wanted == alias.lower():
            return SYSTEMS[target]
    for known in SYSTEMS.values():
        if wanted in (known.name.lower(), known.slug):
            return known
    raise UserError(f'--systems: expected one of {", ".join(SYSTEMS)}, found '
                    f'{name!r}')


def sets_of(item: Item, offered: Sequence[str]) -> list[str]:
    """Of the sets on offer those that an item shows.

    A set that the paper does not have (our own small ones) stands in for the
    item's, if the item is about sets with driving backgrounds.
    """
    return [name for name in offered if name in item.sets or (
        name not in PAPER_SETS and not name.startswith('vd4rl_')
        and item.name != 'table4')]


def cells(items: Sequence[Item], offered: Sequence[str], seeds: int,
          scale: str, systems: Sequence[str] | None = None,
          extra: Sequence[str] = ()) -> list[Cell]:
    """The runs that items need, each once, seeds outermost.

    Args:
      offered: names of the sets that may be used.
      seeds: how many; runs of the first seed come before all others.
      systems: only these, if given.
      extra: systems that join Table 1 beyond the paper's; labelled ones
        join every table that their system is in.
    """
    wanted: dict[tuple[str, str], tuple[set[str], list[str]]] = {}
    for item in items:
        joined = extra if item.name in OPEN else [
            name for name in extra if item.name.startswith('table')
            and base(name) != name and base(name) in item.systems]
        for method in dict.fromkeys((*item.systems, *joined)):
            if systems is not None and method not in systems:
                continue
            for name in sets_of(item, offered):
                variants, used = wanted.setdefault((name, method),
                                                   (set(), []))
                variants.update(item.variants)
                used.append(item.name)
    return [Cell(method, name, seed, scale,
                 tuple(sorted(variants | {''})), tuple(used))
            for seed in range(seeds)
            for (name, method), (variants, used) in wanted.items()]
