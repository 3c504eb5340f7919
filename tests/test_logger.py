"""Records: rows, rewinding, films, and what a crash leaves."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import (
    Logger,
    Progress,
    append_row,
    read_rows,
    write_video,
)


def rows_of(folder, name='metrics.jsonl'):
    return read_rows(folder / name)


def test_rows_are_sorted_and_valid_json(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars('model', 3, {'b': 2.0, 'a': float('nan'),
                                'c': float('inf')})
    logger.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert list(json.loads(text)) == ['phase', 'step', 'a', 'b', 'c']
    assert rows_of(tmp_path)[0]['a'] == 'nan'
    assert float(rows_of(tmp_path)[0]['c']) == float('inf')


def test_rewinding_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    def log(folder, interrupted):
        logger = Logger(folder, tensorboard=False)
        logger.scalars('model', 1, {'x': 1.0})
        position = logger.position()
        if interrupted:
            logger.scalars('model', 2, {'x': 9.0})
            logger.episode({'return': 9.0})
            logger.close()
            logger = Logger(folder, tensorboard=False)
            logger.rewind(position)
        logger.scalars('model', 2, {'x': 2.0})
        logger.episode({'return': 2.0})
        logger.close()
        return [(folder / name).read_bytes()
                for name in ('metrics.jsonl', 'episodes.jsonl')]

    assert log(tmp_path / 'a', False) == log(tmp_path / 'b', True)


def test_rewinding_to_nothing_forgets_all_but_times(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars('model', 1, {'x': 1.0})
    logger.timings('model', 1, {'seconds': 1.0})
    logger.rewind(None)
    logger.close()
    assert rows_of(tmp_path) == []
    assert len(rows_of(tmp_path, 'timings.jsonl')) == 1


def test_a_record_shorter_than_at_the_checkpoint_is_said(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars('model', 1, {'x': 1.0})
    position = logger.position()
    logger.close()
    (tmp_path / 'metrics.jsonl').write_bytes(b'{}')
    logger = Logger(tmp_path, tensorboard=False)
    with pytest.raises(UserError, match=r'metrics\.jsonl: .* found 2; '):
        logger.rewind(position)
    logger.close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b'{}'


def test_rows_after_a_torn_one_can_be_read(tmp_path):
    def log(logger, step):
        logger.timings('model', step, {'seconds': float(step)})
        return [row['step'] for row in rows_of(tmp_path, 'timings.jsonl')]

    logger = Logger(tmp_path, tensorboard=False)
    log(logger, 1)
    log(logger, 2)
    logger.close()
    path = tmp_path / 'timings.jsonl'
    path.write_bytes(path.read_bytes()[:-5])  # killed in the middle of it
    logger = Logger(tmp_path, tensorboard=False)
    assert rows_of(tmp_path, 'timings.jsonl')[-1]['step'] == 1
    logger.rewind(logger.position())
    assert log(logger, 3) == [1, 3]
    assert logger.position()['timings.jsonl'] == path.stat().st_size
    logger.rewind(logger.position())  # whole lines stay
    assert log(logger, 4) == [1, 3, 4]
    logger.close()


def test_a_row_is_added_after_a_torn_one(tmp_path):
    path = tmp_path / 'spent.jsonl'
    append_row(path, {'a': 1})
    append_row(path, {'a': 2})
    path.write_bytes(path.read_bytes() + b'{"a":')
    append_row(path, {'a': 3})
    assert read_rows(path) == [{'a': 1}, {'a': 2}, {'a': 3}]


def test_a_damaged_line_is_said(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    for damaged in (b'{"a": 1, "b{"a": 2}\n', b'{"a": 1}\n\n{"a": 2}\n',
                    b'{"a": 1}\r{"a": 2}\n'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'line [12]: expected a row'):
            read_rows(path)


def test_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"phase": "m", "step": 1}\n{"phase": "m", "st')
    assert read_rows(path) == [{'phase': 'm', 'step': 1}]
    assert read_rows(tmp_path / 'absent') == []


def test_tensorboard_is_rebuilt_from_the_rows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )
    from tensorboard.util.tensor_util import make_ndarray
    logger = Logger(tmp_path)
    for step in (1, 2, 3):
        logger.scalars('model', step, {'loss': float(step)})
        if step == 1:
            position = logger.position()
    logger.rewind(position)
    logger.scalars('model', 2, {'loss': 7.0})
    logger.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard'),
                              size_guidance={'tensors': 0})
    events.Reload()
    found = [(e.step, float(make_ndarray(e.tensor_proto)))
             for e in events.Tensors('model/loss')]
    assert found == [(1, 1.0), (2, 7.0)]


def test_no_run_ends_for_a_film(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', '/bin/false')
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match='imageio-ffmpeg'):
        write_video(tmp_path / 'x.mp4', frames)
    logger = Logger(tmp_path, tensorboard=False)
    assert logger.video('agent', 1, 'policy', frames) is None
    assert 'warning: ' in capsys.readouterr().err
    assert not list(tmp_path.rglob('*.mp4'))


@pytest.mark.parametrize('free', [0, 2 ** 30])
def test_a_film_that_breaks_off_takes_no_place(tmp_path, monkeypatch, free):
    class Torn:  # imageio's writer when the disk is full
        def __init__(self, path, **_):
            path.write_bytes(b'half of a film')

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def append_data(self, frame):
            pass

    monkeypatch.setattr('imageio.v2.get_writer', Torn)
    monkeypatch.setattr('shutil.disk_usage', lambda _: SimpleNamespace(
        free=free))
    (tmp_path / 'x.mp4').write_bytes(b'an older film')
    expected = UserError if free else OSError
    with pytest.raises(expected):
        write_video(tmp_path / 'x.mp4', np.zeros((2, 8, 8, 3), np.uint8))
    assert (tmp_path / 'x.mp4').read_bytes() == b'an older film'
    assert len([*tmp_path.iterdir()]) == 1


def test_films_can_be_played_and_are_the_right_way_up(tmp_path):
    import imageio.v3 as imageio
    frames = np.zeros((6, 33, 51, 3), np.uint8)
    frames[:, :16, :, 0] = 200  # red above
    frames[:, 17:, :25, 2] = 200  # blue below, on the left
    write_video(tmp_path / 'x.mp4', frames)
    film = imageio.imread(tmp_path / 'x.mp4').astype(int)
    assert len(film) == 6
    assert film.shape[1] % 2 == film.shape[2] % 2 == 0
    height, width = film.shape[1:3]
    top = film[3, height // 6, width // 2]
    left = film[3, 5 * height // 6, width // 6]
    right = film[3, 5 * height // 6, 5 * width // 6]
    assert top[0] > 120 > top[2]
    assert left[2] > 120 > left[0]
    assert right.max() < 80
    assert not list(tmp_path.glob('*partial*'))


def test_progress_without_a_terminal_is_a_line(capsys):
    bar = Progress(10, 4, 'model')
    bar.update(2)
    bar.show({'model_loss': 1.0})
    bar.close()
    assert 'model 6/10' in capsys.readouterr().err
