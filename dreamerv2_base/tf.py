"""The one import of TensorFlow: `from dreamerv2_base.tf import tf`.

TensorFlow and Mesa's software renderer each carry an LLVM. Loaded into one
process in the wrong order, the symbols of one are bound to the other and the
first convolution or rendered frame ends in a segmentation fault. Binding
TensorFlow's libraries to their own symbols (RTLD_DEEPBIND) makes any order
safe. `tests/test_tf.py` holds that.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

# Keras 3 variables are invisible to tf.Module; TFP needs the legacy package.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# By itself TensorFlow uses oneDNN only on processors with AVX-512; with AVX2
# an update takes twice as long without it (docs/performance.md).
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

# What every TensorFlow 2.19 prints at import and at the first look for a GPU,
# whether or not there is one. Anything else it prints is passed on.
_KNOWN_NOISE = re.compile(
    r'Unable to register cu\w+ factory|computation placer already registered'
    r'|before absl::InitializeLog'
    r'|failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)')


@contextlib.contextmanager
def _quiet_start():
    flags, real = sys.getdlopenflags(), os.dup(2)
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.setdlopenflags(flags)
            os.dup2(real, 2)
            os.close(real)
            log.seek(0)
            for line in log.read().decode(errors='replace').splitlines():
                if not _KNOWN_NOISE.search(line):
                    print(line, file=sys.stderr)


with _quiet_start():
    import tensorflow as tf
    tf.config.list_physical_devices()

__all__ = ['CountedGraph', 'compiled', 'compute_dtype', 'is_full',
           'prepare_devices', 'tensors', 'tf']

_COMPUTE = {'32': 'float32', '16': 'float16', 'bf16': 'bfloat16'}


def compiled(function: Callable, jit: str) -> Callable:
    """`function` as one graph, as the configuration's `jit` says.

    Control flow on tensors must be written as such (tf.cond, tf.while_loop):
    rewriting Python's (AutoGraph) is off, as it makes tracing slower.

    Args:
      jit: 'none' (a graph), 'xla' (a graph compiled by XLA) or 'eager' (the
        function as it is).
    """
    if jit == 'eager':
        return function
    return tf.function(function, autograph=False, jit_compile=jit == 'xla')


def tensors(arrays: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """The same entries as tensors. What is one already stays as it is."""
    return {key: tf.convert_to_tensor(value) for key, value in arrays.items()}


class CountedGraph:
    """`function(batch, counter)` as one graph that is given NumPy arrays.

    The counter is a whole number, int64 inside: traced once for all of them.

    Args:
      function: of a dictionary of tensors and a scalar tensor.
      jit: see `compiled`.
    """

    def __init__(self, function: Callable[[dict[str, tf.Tensor], tf.Tensor],
                                          Any], jit: str):
        self.graph = compiled(function, jit)

    def __call__(self, batch: Mapping[str, Any], counter: int) -> Any:
        with tf.device('CPU'):  # it only makes keys of draws (noise.py)
            step = tf.constant(counter, tf.int64)
        return self.graph(tensors(batch), step)


def compute_dtype(precision: str | int) -> tf.DType:
    """dtype of activations for `precision` 32, 16 or bf16.

    Variables are float32 always; distributions and losses too.
    """
    return tf.as_dtype(_COMPUTE[str(precision)])


# How a GPU says that it is full, besides ResourceExhaustedError.
_FULL = ('Dst tensor is not initialized', 'CUDA_ERROR_OUT_OF_MEMORY',
         'CUDNN_STATUS_ALLOC_FAILED', 'CUBLAS_STATUS_ALLOC_FAILED')


def is_full(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full."""
    return isinstance(error, tf.errors.ResourceExhaustedError) or (
        isinstance(error, (tf.errors.OpError, RuntimeError))
        and any(text in str(error) for text in _FULL))


def prepare_devices(deterministic: bool = True) -> list[str]:
    """Let GPU memory grow on demand, pin op order; name the devices.

    Must be called before the first operation. Not claimed beyond what was run:
    the GPU branch was never executed by the authors of this file.
    """
    devices = tf.config.list_physical_devices('GPU')
    for device in devices:
        try:
            tf.config.experimental.set_memory_growth(device, True)
        except RuntimeError:
            # In use already (a policy loaded into someone's own program):
            # then its user has decided, or did not know.
            if not tf.config.experimental.get_memory_growth(device):
                print(f'warning: {device.name} was in use before its memory '
                      'could be let grow on demand: TensorFlow takes all of '
                      'it', file=sys.stderr)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        # The first makes a + b + c a sum in no fixed order (see sums.py); the
        # second fails on graphs that the first has not seen. Neither was
        # found to save time.
        tf.config.optimizer.set_experimental_options(
            {'arithmetic_optimization': False, 'remapping': False})
    names = []
    for device in devices:
        details = tf.config.experimental.get_device_details(device)
        names.append(details.get('device_name', device.name))
    return names
