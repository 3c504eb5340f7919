"""Choosing an OpenGL for MuJoCo before dm_control is imported."""

from __future__ import annotations

import os
import subprocess
import sys

from dreamerv2_base.errors import UserError

# Debian's packages per renderer.
PACKAGES = {'egl': 'libegl1 libopengl0 libgl1-mesa-dri',
            'osmesa': 'libosmesa6'}
TIMEOUT = 60.0  # seconds for one probe

_PROBE = '''
import mujoco
xml = "<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 8, 8)
renderer.update_scene(data)
assert renderer.render().shape == (8, 8, 3)
renderer.close()
'''


def probe(name: str) -> str | None:
    """Render 8x8 pixels in a child process; the reason if it fails."""
    environment = {**os.environ, 'MUJOCO_GL': name}
    try:
        done = subprocess.run(
            [sys.executable, '-c', _PROBE], env=environment, text=True,
            capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f'no answer within {TIMEOUT:.0f} s'
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'exit code {done.returncode}'


def choose_renderer() -> str:
    """The value of MUJOCO_GL: the user's own, else EGL, else OSMesa.

    Raises UserError with what to install when none works.
    """
    # Without this a process may print a traceback when it ends.
    os.environ.setdefault('DISABLE_RENDER_THREAD_OFFLOADING', '1')
    chosen = os.environ.get('MUJOCO_GL')
    if chosen:
        return chosen
    reasons = []
    for name in PACKAGES:
        reason = probe(name)
        if reason is None:
            os.environ['MUJOCO_GL'] = name
            return name
        reasons.append(f'{name}: {reason}')
    raise UserError(
        'rendering: expected OpenGL by EGL or OSMesa, found neither '
        f'({"; ".join(reasons)}); install it: apt-get install -y '
        f'{PACKAGES["egl"]}')
