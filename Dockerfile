# An image with everything installed, `run.py` its command:
#   docker build -t semopo_tf .                       # CPU
#   docker build -t semopo_tf --build-arg GPU=1 .     # with NVIDIA's libraries
#   docker run --rm -v "$PWD/data:/semopo_tf/data" -v "$PWD/runs:/semopo_tf/runs" \
#     semopo_tf train --configs paper walker_walk_random …   # --gpus all: a GPU
FROM debian:bookworm-slim
ARG GPU=0
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates git make python3
# Also what renders: MuJoCo draws with NVIDIA's EGL where the driver gives it.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
WORKDIR /semopo_tf
# With .git: every run records its commit. `make env` installs OpenGL, too.
COPY . .
RUN git config --global --add safe.directory /semopo_tf && make env GPU=$GPU
ENTRYPOINT [".venv/bin/python", "run.py"]
