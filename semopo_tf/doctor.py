"""`run.py doctor`: can this machine run this configuration, and how fast?"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import is_weight
from dreamerv2_base.config import Config
from dreamerv2_base.errors import NoRoomError, UserError
from semopo_tf import memory, registry, settings

# The set that was tried together (requirements.lock).
TESTED = {'tensorflow': '2.19.1', 'tensorflow-probability': '0.25.0',
          'tf-keras': '2.19.0', 'numpy': '1.26.4', 'dm-control': '1.0.50',
          'mujoco': '3.17.0', 'gym': '0.26.2', 'ruamel-yaml': '0.19.1',
          'imageio': '2.38.1'}


@dataclass
class Findings:
    """What was found; `problems` keep the configuration from running."""

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def say(self, text: str = '') -> None:
        print(text, flush=True)


def run(arguments: list[str]) -> int:
    """Check versions, devices, renderer, memory, disk and one timed step.

    Returns 0 when the configuration can run here, 1 when not.
    """
    config, _ = settings.resolve(arguments)
    settings.check_frames(config)
    found = Findings()
    check_versions(found)
    devices = check_devices(config, found)
    check_renderer(config, found)
    check_frames(config, found)
    method = registry.method_name(config)
    if method in registry.ONLINE:
        config = with_updates(config)
    if method in registry.PIXEL_METHODS:
        check_pixel_method(config, devices, found)
    elif method in registry.DREAMERS:
        agent, weights = new_agent(config, devices, found)
        check_memory(config, weights, devices, found)
        try:
            with memory.expecting_room():
                check_speed(config, agent, devices, found)
        except NoRoomError as error:
            found.problems.append(str(error))
    else:
        found.remarks.append(f'{method}: time and memory of its updates are '
                             'not measured here; the first lines of a run say '
                             'how fast it is')
    check_disk(config, found)
    return verdict(found)


def with_updates(config: Config) -> Config:
    """An online configuration with its batch and number of updates where the
    checks look for the offline ones."""
    from semopo_tf.online import plan_of
    updates, size = plan_of(config).updates, config.dataset.nested()
    return config.update({
        'offline_model_train_steps': updates, 'steps': updates,
        **{f'offline_{phase}_dataset.{key}': value
           for phase in ('model', 'train') for key, value in size.items()}})


def check_versions(found: Findings) -> None:
    """Installed against tested versions."""
    found.say(f'python {sys.version.split()[0]} (tested: 3.11, 3.12)')
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        found.remarks.append('Python is neither 3.11 nor 3.12')
    for package, tested in TESTED.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.problems.append(
                f'{package} is not installed; run make env')
            continue
        same = version == tested
        found.say(f'{package} {version}'
                  f'{"" if same else f" (tested: {tested})"}')
        if not same:
            found.remarks.append(f'{package} {version} was not tested')


def check_devices(config: Config, found: Findings) -> list[str]:
    """GPUs that TensorFlow sees."""
    from dreamerv2_base.tf import prepare_devices, tf
    devices = prepare_devices(config.deterministic)
    build = tf.sysconfig.get_build_info()
    found.say(f'GPU: {", ".join(devices) or "none"} (TensorFlow built for '
              f'CUDA {build.get("cuda_version", "none")})')
    if not devices:
        text = 'no GPU: full-size runs take weeks on a CPU'
        if shutil.which('nvidia-smi'):
            text = ('nvidia-smi is here but TensorFlow sees no GPU; where its '
                    'libraries are missing: make env GPU=1')
            for line in why_no_gpu():
                found.say(f'  {line}')
        (found.problems if config.require_gpu else found.remarks).append(text)
    return devices


def why_no_gpu() -> list[str]:
    """What TensorFlow says of drivers and libraries when asked aloud."""
    done = subprocess.run(
        [sys.executable, '-c',
         '__import__("tensorflow").config.list_physical_devices("GPU")'],
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '0'}, text=True,
        capture_output=True, check=False)
    return [line for line in done.stderr.splitlines()
            if re.search('cuInit|dlopen|libcu|driver', line)]


def check_renderer(config: Config, found: Findings) -> None:
    """OpenGL for MuJoCo, with the first rows of the configured task."""
    from dreamerv2_base.envs.opengl import choose_renderer
    from semopo_tf.environments import env_spec_from, make_env
    try:
        name = choose_renderer()
        env = make_env(env_spec_from(config))
        seen = env.reset(seed=0)
        started = time.perf_counter()
        action = [0.0] * env.action_size
        for _ in range(20):
            env.step(action)
        rate = 20 / (time.perf_counter() - started)
        env.close()
    except UserError as error:
        found.problems.append(str(error))
        return
    frame = seen.get('image')
    shown = ('states alone' if frame is None
             else f'frame {frame.shape}, mean {frame.mean():.0f}')
    found.say(f'renderer: {name}; {config.task}: {shown}, {rate:.0f} '
              'environment steps per second in one process')


def check_frames(config: Config, found: Findings) -> None:
    """The data's frames, drawn again from the states that a set keeps."""
    from datasets import manifest, probes
    if registry.method_name(config) in registry.ONLINE:
        return
    for folder in map(Path, config.offline_dir):
        if not folder.exists():
            if folder.name != 'none':
                found.say(f'frames of {folder}: not there yet')
            continue
        recipe = (manifest.load(folder) or {}).get('recipe') or {}
        try:
            apart = probes.differences(folder, recipe)
        except UserError as error:
            found.problems.append(str(error))
            continue
        if not apart:
            found.say(f'frames of {folder}: cannot be drawn again, no states '
                      'are kept with them (data build keeps some of DM '
                      "Control's)")
            continue
        worst = max(apart)
        found.say(f'frames of {folder}: {len(apart)} drawn again, mean '
                  f'difference at most {worst:.2f} of 255')
        if worst > probes.SAME:
            found.remarks.append(
                f'{folder}: this machine draws other frames than the data '
                'have (versions of dm_control and MuJoCo, renderer or '
                'driver); a policy that learned from them may do worse here')


def new_agent(config: Config, devices: list[str], found: Findings,
              ) -> tuple[Any, int]:
    """An agent with first weights, and how many it has."""
    from dreamerv2_base.nets import variables_by_name
    from semopo_tf.agent import PenalizedAgent
    if not devices and config.precision != '32':
        found.remarks.append(
            f'precision {config.precision} is many times slower than 32 on a '
            'CPU: give --precision 32 (the step is timed with 32)')
        config = config.update({'precision': '32'})
    agent = PenalizedAgent(config, (config.image_size,) * 2 + (3,), 6)
    weights = sum(int(np.prod(v.shape)) for name, v in
                  variables_by_name(agent).items()
                  if is_weight(name) and v.shape.rank)
    found.say(f'weights: {weights:,}')
    return agent, weights


def check_speed(config: Config, agent: Any, devices: list[str],
                found: Findings) -> None:
    """One model and one policy update, timed; without a GPU at 1/16 of the
    batch.
    """
    from dreamerv2_base.noise import CounterDraws
    from dreamerv2_base.tf import CountedGraph, tensors
    size = config.offline_model_dataset
    batch = max(1, size.batch // 16) if not devices else size.batch
    rng = np.random.default_rng(0)
    data = tensors(
        fake_batch(rng, batch, size.length, config.image_size, 6))
    for name, update in (('model', agent.model_train),
                         ('policy', agent.agent_train)):
        def metrics(data, step, update=update):
            return update(data, CounterDraws(0, 'doctor', step))[1]

        graph = CountedGraph(metrics, config.jit)
        first = _seconds(lambda g=graph: g(data, 0))
        again = min(_seconds(lambda g=graph, i=i: g(data, i))
                    for i in (1, 2))
        found.say(f'{name} update, batch {batch}x{size.length}: '
                  f'{again:.2f} s (first, with tracing: {first:.0f} s)')
        count = (config.offline_model_train_steps if name == 'model'
                 else config.steps)
        hours = again * count / 3600 * size.batch / batch
        found.say(f'  {count:,} at batch {size.batch}: about {hours:,.1f} h, '
                  'if time grows with the batch')
    _say_peak(devices, found)


def _say_peak(devices: list[str], found: Findings) -> None:
    """The most memory that was held: of the GPU, or of this process."""
    from dreamerv2_base.tf import tf
    if devices:
        peak = tf.config.experimental.get_memory_info('GPU:0')['peak']
        found.say(f'peak of GPU memory: {peak / memory.GIB:.1f} GiB')
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found.say(f'peak of this process: {peak / memory.GIB:.1f} GiB')


def check_memory(config: Config, weights: int, devices: list[str],
                 found: Findings) -> None:
    """The estimate for the configured batch, with its derivation."""
    estimate = memory.training(config, weights)
    size = config.offline_model_dataset
    found.say(f'memory of a model update at batch {size.batch}x{size.length},'
              f' precision {config.precision} (estimate from shapes):')
    for line in estimate.lines():
        found.say(f'  {line}')
    for card in (24, 12):
        fits = estimate.total < 0.9 * card * memory.GIB
        found.say(f'  {"fits" if fits else "does not fit"} a {card} GB card '
                  'with a tenth to spare')
    free = memory.available()
    if not devices and estimate.total > free:
        found.problems.append(
            f'memory: {estimate.total / memory.GIB:.1f} GiB wanted, '
            f'{free / memory.GIB:.1f} GiB free; give '
            '--offline_model_dataset.batch a smaller number')


def check_pixel_method(config: Config, devices: list[str], found: Findings,
                       ) -> None:
    """Memory and time of an update of the model-free pixel methods.

    The update is run at the configured batch unless the estimate says that
    it does not fit; then that is a problem.
    """
    if config.precision != '32':
        found.problems.append(
            f'precision: expected 32 for this method, found '
            f'{config.precision}; give --precision 32')
        return
    method = registry.method_class(config)(config, None, action_size=6)
    weights = sum(method.parameters().values())
    found.say(f'weights: {weights:,}')
    estimate = memory.pixel_training(config, weights)
    size = config.drq.batch_size
    found.say(f'memory of an update at batch {size} (estimate from shapes):')
    for line in estimate.lines():
        found.say(f'  {line}')
    free = memory.available()
    if not devices and estimate.total > free:
        found.problems.append(
            f'memory: {estimate.total / memory.GIB:.1f} GiB wanted, '
            f'{free / memory.GIB:.1f} GiB free; give --drq.batch_size a '
            'smaller number')
        return
    batch = fake_stacks(np.random.default_rng(0), config.drq, 6)
    update = method.phases()[0].train
    try:
        with memory.expecting_room():
            first = _seconds(lambda: update(batch, 0))
            again = min(_seconds(lambda i=i: update(batch, i)) for i in (1, 2))
    except NoRoomError as error:
        found.problems.append(str(error))
        return
    found.say(f'update, batch {size}: {again:.2f} s (first, with tracing: '
              f'{first:.0f} s)')
    found.say(f'  {config.steps:,} updates: about '
              f'{again * config.steps / 3600:,.1f} h')
    _say_peak(devices, found)


def check_disk(config: Config, found: Findings) -> None:
    """Space for a 200,000-frame set and the checkpoints."""
    need = memory.dataset_disk(200_400, config.image_size, 6) + 2 * memory.GIB
    folder = Path(config.logdir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found.say(f'disk: {free / memory.GIB:.0f} GiB free; mapped arrays of 400 '
              f'episodes and checkpoints need {need / memory.GIB:.1f} GiB')
    if free < need:
        found.problems.append('disk: too little space for a 400-episode set')


def verdict(found: Findings) -> int:
    """Print remarks, problems and what to do; the exit code."""
    for remark in found.remarks:
        found.say(f'remark: {remark}')
    for problem in found.problems:
        found.say(f'PROBLEM: {problem}')
    found.say('verdict: ' + (
        'this configuration cannot run here yet' if found.problems
        else 'this configuration can run here'))
    return 1 if found.problems else 0


def fake_batch(rng: np.random.Generator, batch: int, length: int, size: int,
               actions: int) -> dict[str, np.ndarray]:
    """A batch of noise in the shape of real data (NumPy)."""
    first = np.zeros((batch, length), bool)
    first[:, 0] = True
    return {
        'image': rng.integers(
            0, 256, (batch, length, size, size, 3), dtype=np.uint8),
        'action': rng.uniform(
            -1, 1, (batch, length, actions)).astype(np.float32),
        'reward': rng.uniform(0, 1, (batch, length)).astype(np.float32),
        'is_first': first, 'is_last': np.zeros_like(first),
        'is_terminal': np.zeros_like(first)}


def fake_stacks(rng: np.random.Generator, drq: Config, actions: int,
                ) -> dict[str, np.ndarray]:
    """A batch of noise for the pixel methods (NumPy): obs, next_obs and
    obs_k uint8 [B, S, S, 3·F], action [B, A], reward and discount [B]."""
    rows, side = drq.batch_size, drq.image_size
    shape = (rows, side, side, 3 * drq.frame_stack)
    images = {key: rng.integers(0, 256, shape, np.uint8)
              for key in ('obs', 'next_obs', 'obs_k')}
    return {
        **images, 'k': np.ones(rows, np.int64),
        'action': rng.uniform(-1, 1, (rows, actions)).astype(np.float32),
        'reward': rng.uniform(0, 1, rows).astype(np.float32),
        'discount': np.full(rows, drq.discount, np.float32)}


def _seconds(call) -> float:
    started = time.perf_counter()
    result = call()
    for value in result.values():
        float(value)
    return time.perf_counter() - started
