"""What TensorFlow makes of an update: no sum of three or more is left to
timing, and everything that a GPU should do it can do there."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.sums import branches, gradient, total
from dreamerv2_base.tf import prepare_devices, tf
from tests.test_battery import begun, configured, write_data


def test_total_is_the_sum():
    values = [tf.constant([1.0, 2.0]), tf.constant([10.0, 20.0]),
              tf.constant([100.0, 200.0])]
    np.testing.assert_array_equal(total(values), [111, 222])


@pytest.mark.parametrize('graph', [True, False])
def test_gradient_of_several_uses(graph):
    weight, other = tf.Variable([2.0, 3.0]), tf.Variable(1.0)

    def run():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight ** 2 + 5 * weight + tf.exp(weight))
        return gradient(tape, loss, {'a': weight})['a']

    found = (tf.function(run) if graph else run)()
    np.testing.assert_allclose(found, 2 * weight + 5 + tf.exp(weight))
    with tf.GradientTape() as tape:
        loss = tf.square(other)
    assert gradient(tape, loss, {'a': weight, 'b': other})['a'] is None


def test_branches_add_up():
    x = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        a, b, c, d = branches(x, 4)
        loss = a + 10 * b + 100 * c + 1000 * d
    assert tape.gradient(loss, x).numpy() == 1111


def sums_in(graphs) -> list[tuple[str, int]]:
    """Name and number of inputs of every sum of more than two."""
    found = []
    for graph in graphs:
        for node in nodes_of(graph.post_optimization_graph):
            inputs = [name for name in node.input if name[0] != '^']
            if node.op in ('AddN', 'AccumulateNV2') and len(inputs) > 2:
                found.append((node.name, len(inputs)))
    return found


def nodes_of(graph):
    for body in (graph.node, *(f.node_def for f in graph.library.function)):
        yield from body


# Resolved by the runtime before any kernel is looked for.
CONTROL = {'Placeholder', '_Arg', '_Retval', 'PartitionedCall',
           'StatefulPartitionedCall'}


def without_gpu_kernel(graphs) -> set[str]:
    """Operations that have no kernel of a GPU for their types, as TensorFlow
    registers them (in a build without CUDA: none has one)."""
    return {node.op for graph in graphs
            for node in nodes_of(graph.pre_optimization_graph)
            if node.op not in CONTROL and not has_gpu_kernel(node)}


def has_gpu_kernel(node) -> bool:
    from tensorflow.python.framework import kernels
    return any(
        kernel.device_type in ('GPU', 'DEFAULT') and not kernel.label
        and all(kind in rule.allowed_values.list.type
                for rule in kernel.constraint
                for kind in types_of(node.attr[rule.name]))
        for kernel in kernels.get_registered_kernels_for_op(node.op).kernel)


def types_of(attribute) -> list[int]:
    return [*attribute.list.type] or [attribute.type]


def test_the_check_sees_what_a_gpu_cannot_do():
    @tf.function
    def rows(x):
        return tf.gather(x, [0])

    found = [without_gpu_kernel(as_run(lambda kind=kind: rows(
        tf.zeros([2, 2], kind)))) for kind in (tf.uint8, tf.float32)]
    assert found == [{'GatherV2'}, set()]


def as_run(call) -> list:
    """What `call` runs: graphs before and after TensorFlow's optimizer."""
    # Nothing public shows that. Not before dreamerv2_base.tf is imported.
    from tensorflow.python.eager import context
    watched = context.context()
    watched.enable_run_metadata()
    call()
    graphs = watched.export_run_metadata().function_graphs
    watched.disable_run_metadata()
    return [*graphs]


def test_the_check_sees_a_sum():
    @tf.function
    def three(x):
        return tf.add_n([x, tf.exp(x), tf.sin(x)])

    found = sums_in(as_run(lambda: three(tf.constant([1.0]))))
    assert [count for _, count in found] == [3]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data') / 'episodes')


GAUSSIAN = {'rssm.discrete': 0, 'exo_only_decoder': False,
            'offline_penalty_type': 'disagreement'}
TIA = {'disen_scales.reward': 20000.0, 'disen_action_type': 'main',
       'grad_heads': ['decoder', 'reward']}
LOG_PROB = {'offline_penalty_type': 'log_prob_ens'}


SLOW = [('offline_dv2', {}), ('mopo', {}), ('drq_bc', {}),
        ('drq_cql', {'drq.cql_importance_sample': True}), ('infogating', {}),
        ('infogating', {'infogating.head': 'drq_bc'}),
        ('semopo', GAUSSIAN), ('semopo', TIA), ('semopo', LOG_PROB),
        ('semopo', {'pred_discount': True})]


@pytest.mark.parametrize(('name', 'changes'), [
    ('semopo', {}), ('lompo', {}), ('bc', {}),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)])
def test_no_update_sums_three_in_an_order_of_its_own(
        name, changes, data, tmp_path, monkeypatch):
    prepare_devices()
    config = configured(name, data, tmp_path, jit='none', **changes)
    method, store = begun(config)
    # As if there were one: what is done for it is done.
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: ['one'])
    for phase in method.phases():
        if phase.start:
            phase.start()
        batch = None
        if phase.source and phase.prefetch:
            batch = phase.source(store).batch(0)
            batch = phase.prepare(batch) if phase.prepare else batch
        graphs = as_run(lambda p=phase, b=batch: p.train(b, 0))
        assert graphs
        assert sums_in(graphs) == []
        assert without_gpu_kernel(graphs) == set()
        if phase.finish:
            phase.finish()
