"""The commands of run.py, as functions of their arguments or of folders."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamerv2_base.config import Config, parse_flags, repeated_flags
from dreamerv2_base.errors import UserError
from semopo_tf import inert, registry, settings

INTERRUPTED = 130  # the shell's exit code for Ctrl-C
NOT_FINITE = 3  # the exit code of a loss that is not finite


def train(arguments: list[str]) -> int:
    """Train a method, or go on with the run in its folder."""
    from semopo_tf import data_match
    config, names = settings.resolve(arguments)
    settings.check_frames(config)
    notes = inert.warnings(config, parse_flags(arguments))
    notes += repeated_flags(arguments)
    data_match.check_task(config)
    notes += data_match.recipe_notes(config)
    for note in notes:
        print(f'warning: {note}', file=sys.stderr)
    return train_run(config, names, notes,
                     f'python run.py train {shlex.join(arguments)}')


def train_run(config: Config, names: list[str], notes: list[str],
              again: str) -> int:
    """Train in the folder `logdir`, or go on; returns the exit code.

    `names`: of the presets; `notes`: warnings; both for the records.
    `again`: the command that goes on, for the user.
    """
    from semopo_tf import data_match
    store = open_data(config)
    seen = data_match.episode_notes(config, store)
    seen += data_match.video_notes(Path(config.logdir).expanduser(), config)
    for note in seen:
        print(f'warning: {note}', file=sys.stderr)
    from semopo_tf import memory, report, run_folder, training
    from semopo_tf.evaluation import Evaluator
    devices = prepare(config)
    with memory.expecting_room(), Evaluator(config) as evaluator:
        # A method that collects its data begins in the environment.
        if registry.method_name(config) not in registry.ONLINE:
            evaluator.check(store.action_size)
        # Before the folder: a configuration that is refused leaves none.
        method = registry.method_class(config)(config, store)
        with run_folder.RunFolder(config) as run:
            record_start(
                run, config, store, names, [*notes, *seen], devices)
            print_sizes(method)
            loop = training.Loop(config, method, store, run, evaluator)
            try:
                loop.train()
            except training.Interrupted:
                print(f'stopped; saved in {run.path}. Go on with:\n  {again}',
                      file=sys.stderr)
                return INTERRUPTED
            except training.NotFinite as error:
                print(f'error: {error}', file=sys.stderr)
                return NOT_FINITE
            page = report.write_report(run.path)
    print_next(run.path, page)
    return 0


def evaluate(folder: Path, episodes: int | None, arguments: list[str],
             video: Path | None = None) -> int:
    """Evaluate the newest policy of a run folder, in a fresh environment.

    Flags change keys of the environment (`--video_dir FOLDER`).
    """
    import json

    import numpy as np

    from dreamerv2_base.logger import read_record, write_video
    from semopo_tf import data_match, export
    flags = parse_flags(arguments)
    if 'eval_eps' in flags or 'final_eval_eps' in flags:
        raise UserError('evaluate: expected the number of episodes as '
                        '--episodes N, found --eval_eps or --final_eval_eps')
    config = settings.check(
        run_config(folder).update(flags, 'command line'))
    settings.check_frames(config)
    if episodes is not None and episodes < 1:
        raise UserError('--episodes: expected at least 1, found '
                        f'{episodes}; give --episodes 10')
    if video is not None and (
            video.suffix != '.mp4' or not video.absolute().parent.is_dir()):
        raise UserError(f'--video: expected FILE.mp4 in a folder that is '
                        f'there, found {video}; make the folder first, or '
                        f'give --video {video.with_suffix(".mp4")}')
    data = read_record(folder / 'data.json')
    for note in (*data_match.video_notes(folder, config),
                 *inert.of_an_evaluation(config, flags)):
        print(f'warning: {note}', file=sys.stderr)
    method, state = export.load_policy(folder, config)
    from dreamerv2_base.noise import fold
    from semopo_tf.evaluation import Evaluator
    count = config.final_eval_eps if episodes is None else episodes
    with Evaluator(config) as evaluator:
        evaluator.check(data['action_size'])
        found = evaluator.run(
            method, count, fold(config.seed, 'evaluate', count))
    returns = [row['return'] for row in found.episodes]
    print(json.dumps({
        'run': str(folder), 'task': config.task, 'at': state['at'],
        'episodes': count, 'mean': float(np.mean(returns)),
        'std': float(np.std(returns)), 'returns': returns,
        'lengths': [row['length'] for row in found.episodes]}, indent=1))
    if video is not None and found.frames is not None:
        write_video(video, found.frames)
        print(f'film: {video}', file=sys.stderr)
    elif video is not None:
        print(f'note: no film, because {config.task} is seen as states, not '
              'as frames', file=sys.stderr)
    return 0


def collect(arguments: list[str]) -> int:
    """Make demonstration episodes for `offline_dir`."""
    from semopo_tf import collect as collector
    config, _ = settings.resolve(arguments)
    folder = collector.collect(config)
    print(f'episodes in {folder}; train with:\n  python run.py train '
          f'{shlex.join(arguments)}')
    return 0


def report(folder: Path) -> int:
    """Write the HTML report of a run folder."""
    from semopo_tf.report import write_report
    run_config(folder)
    print(write_report(folder))
    return 0


def diff_traces(paths: list[Path], arguments: list[str]) -> int:
    """Compare recorded traces with this package; 0 only if all agree."""
    from tqdm import tqdm

    from semopo_tf import parity
    for path in paths:  # before minutes of replaying others
        with parity.opened(path):
            pass
    from dreamerv2_base.tf import prepare_devices, tf
    prepare_devices()
    _without_tf32()
    changes = {key: values[0] if len(values) == 1 else values
               for key, values in parse_flags(arguments).items()}
    # A graph for every recorded model, which TensorFlow takes for a mistake.
    tf.get_logger().addFilter(
        lambda record: 'function retracing' not in record.getMessage())
    shown = tqdm(paths, desc='traces', unit='trace', leave=False,
                 disable=not sys.stderr.isatty())
    reports = [parity.compare(path, changes) for path in shown]
    return 0 if parity.print_reports(reports) else 1


# Pieces.


def _without_tf32() -> None:
    """Products in TF32 (10 bits) are further off than parity's tolerances."""
    from dreamerv2_base.tf import tf
    tf.config.experimental.enable_tensor_float_32_execution(False)


def open_data(config: Config) -> Any:
    """The episodes of `offline_dir` as mapped arrays, or, for a method that
    collects them, the buffer of its run."""
    if registry.method_name(config) in registry.ONLINE:
        from semopo_tf.online import open_buffer
        return open_buffer(config)
    from dreamerv2_base.store import open_store
    if config.offline_dir == ['none']:
        raise UserError(
            'offline_dir: expected folders of episodes, found none given; '
            'give --offline_dir FOLDER, or make some: run.py collect '
            '--configs demo')
    _expect_each_once(config.offline_dir)
    if registry.method_name(config) == 'mopo':
        from semopo_tf.baselines.mopo_data import open_states
        return open_states(config)
    length = shortest_episode(config)
    size = (config.image_size, config.image_size)
    store = open_store(
        [Path(path) for path in config.offline_dir],
        cache=Path(config.cache_dir) if config.cache_dir else None,
        skip_broken=config.skip_broken, image_size=size, min_length=length)
    if store.skipped:
        print(f'warning: {len(store.skipped)} broken files skipped, first '
              f'{store.skipped[0]}', file=sys.stderr)
    if store.ignored:
        print(f'note: keys of the data that are not used: '
              f'{", ".join(sorted(store.ignored))}', file=sys.stderr)
    return store


def shortest_episode(config: Config) -> int:
    """Rows that every episode must have: a chunk of each phase.

    LOMPO pads and masks shorter ones (baselines 2.3), so there
    one transition is enough.
    """
    if registry.method_name(config) == 'lompo':
        return 2
    return max(config.offline_model_dataset.length,
               config.offline_train_dataset.length)


def prepare(config: Config) -> list[str]:
    """Set TensorFlow up before its first operation; names of the GPUs."""
    from dreamerv2_base.tf import prepare_devices
    devices = prepare_devices(config.deterministic)
    if config.require_gpu and not devices:
        raise UserError('require_gpu: expected a GPU, found none; see '
                        'run.py doctor, or give --require_gpu False')
    if not devices and shutil.which('nvidia-smi'):
        print('warning: nvidia-smi is here but TensorFlow sees no GPU; '
              'run.py doctor says why', file=sys.stderr)
    if not devices and config.precision != '32':
        print(f'warning: precision {config.precision} is many times slower '
              'than 32 without a GPU; give --precision 32', file=sys.stderr)
    return devices


def _expect_each_once(folders: Sequence[str]) -> None:
    """Raises UserError for a folder that is given twice, however it is
    spelled: its episodes would count twice."""
    seen: dict[Path, str] = {}
    for name in folders:
        place = Path(name).expanduser().resolve()
        if place in seen:
            raise UserError(
                f'offline_dir: expected every folder once, found {name}, '
                f'which is {seen[place]} again; leave one of them out')
        seen[place] = name


def run_config(folder: Path) -> Config:
    """The configuration saved in a run folder.

    Raises UserError when there is none.
    """
    path = Path(folder) / 'config.yaml'
    if not path.exists():
        raise UserError(f'{folder}: expected a run folder with config.yaml, '
                        'found none; give the --logdir of a run')
    return settings.check(settings.saved(path))


def _computing(record: dict[str, Any]) -> str:
    """What a run's last bits depend on, of its versions.json."""
    devices = ', '.join(record['devices'])
    return f'CPU (threads: {record["threads"]})' if (
        devices == 'CPU') else devices


def record_start(run, config: Config, store, presets: list[str],
                 notes: list[str], devices: list[str]) -> None:
    """Write what the run was started with into its folder."""
    from dreamerv2_base.logger import read_record
    from semopo_tf.data_match import videos_of
    from semopo_tf.run_folder import versions
    found = versions(devices)
    path = run.path / 'versions.json'
    before = read_record(path) if path.exists() else found
    before.setdefault('threads', found['threads'])  # not in older records
    first, now = _computing(before), _computing(found)
    if first != now:
        print(f'warning: this run was begun on {first}, and goes on on {now}: '
              'its numbers are those of neither alone', file=sys.stderr)
    run.write('versions.json', found)
    run.write('warnings.json', notes)
    changed = config.difference(settings.presets().defaults)
    run.write('start.json', {'presets': presets, 'changed': sorted(changed)})
    videos = videos_of(config)
    run.write('data.json', {
        'folders': list(config.offline_dir), 'action_size': store.action_size,
        'episodes': [str(name) for name in store.names],
        'rows': [int(n) for n in store.rows],
        'returns': [float(r) for r in store.returns],
        'digest': store.digest,
        'skipped': [[str(a), str(b)] for a, b in store.skipped],
        **({'videos': videos} if videos else {})})


def print_sizes(method) -> None:
    """One line with the number of weights per module."""
    counts = method.parameters()
    total = sum(counts.values())
    shown = ', '.join(f'{name} {n:,}' for name, n in counts.items())
    print(f'{total:,} weights: {shown}', file=sys.stderr)


def print_next(folder: Path, page: Path) -> None:
    """Where everything is, and what one can do with it."""
    print(f'run folder: {folder}\nreport:     {page}\n'
          f'evaluate:   python run.py evaluate {shlex.quote(str(folder))} '
          '--episodes 10')


# Other comparisons.


def diff_presets(left: str, right: str, form: str = 'table') -> int:
    """Print every key in which two presets differ, and why."""
    from semopo_tf import preset_diff
    if form == 'table':
        preset_diff.show(left, right)
    else:
        print(preset_diff.render(left, right, form))
    return 0


def diff_runs(left: Path, right: Path) -> int:
    """Say where two run folders first part; 0 when they do not."""
    from semopo_tf import run_diff
    lines = run_diff.compare(left, right)
    print('\n'.join(lines) or 'the runs are equal')
    return 1 if lines else 0


def record_trace(path: Path, arguments: list[str]) -> int:
    """Record a trace of this package in the format of docs/traces.md."""
    from semopo_tf import trace_recorder
    config, _ = settings.resolve(arguments)
    prepare(config)
    _without_tf32()
    trace_recorder.record(path, config)
    print(f'{path}; compare it elsewhere with:\n  python run.py diff --trace '
          f'{path}')
    return 0
