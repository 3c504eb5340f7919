"""Choosing an OpenGL for MuJoCo before dm_control is imported."""

from __future__ import annotations

import os
import subprocess
import sys

from dreamerv2_base.errors import UserError

# What the last line of a failed probe says, and the Debian package that was
# missing (tried one by one on a bare system); the first match counts.
MISSING = {
    'egl': (('eglQueryString', 'libegl1'),
            ('glGetError', 'libopengl0'),
            ('Cannot initialize a headless EGL', 'libgl1-mesa-dri'),
            ('', 'libegl1 libopengl0 libgl1-mesa-dri')),
    'osmesa': (('', 'libosmesa6'),),
}
TIMEOUT = 60.0  # seconds for one probe

# Inherited by children: the value of MUJOCO_GL that is known to work.
CHECKED = 'DREAMER_CHECKED_GL'

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
    # Destructors complain after the error itself; take the error.
    errors = [line for line in done.stderr.splitlines()
              if 'Error: ' in line and not line.startswith(' ')]
    return errors[0] if errors else f'exit code {done.returncode}'


def remedy(name: str, reason: str) -> str:
    """The apt command for a renderer that failed for a reason."""
    for text, packages in MISSING.get(name, ()):
        if text in reason:
            return ('apt-get install -y --no-install-recommends '
                    f'{packages}')
    return 'unset MUJOCO_GL, and EGL or OSMesa is chosen'


def choose_renderer() -> str:
    """The value of MUJOCO_GL: the user's own, else EGL, else OSMesa.

    Sets the variable, for this process and its children. Each candidate is
    tried in a child process once. Raises UserError with what to install when
    the user's own does not work, or neither of the two does.
    """
    # Without this a process may print a traceback when it ends.
    os.environ.setdefault('DISABLE_RENDER_THREAD_OFFLOADING', '1')
    chosen = os.environ.get('MUJOCO_GL')
    if chosen and os.environ.get(CHECKED) == chosen:
        return chosen
    reasons = {}
    for name in [chosen] if chosen else list(MISSING):
        reason = probe(name)
        if reason is None:
            os.environ['MUJOCO_GL'] = os.environ[CHECKED] = name
            return name
        reasons[name] = reason
    first, reason = next(iter(reasons.items()))
    tried = '; '.join(f'{name}: {text}' for name, text in reasons.items())
    raise UserError(f'rendering: expected OpenGL by {" or ".join(reasons)}, '
                    f'found none ({tried}); mend it: {remedy(first, reason)}')
