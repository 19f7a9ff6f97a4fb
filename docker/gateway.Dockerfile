# The gateway alone: no vLLM, no CUDA, no compiler, no root.
#   docker build -f docker/gateway.Dockerfile -t lethe-gateway .
# It judges, corrupts, penalises, filters, refuses, routes, fits, and handles forget requests, all without torch.

# The Python version that constraints.txt was tested with. Add its digest for bit-identical builds.
ARG PYTHON=python:3.11.14-slim-bookworm
# Options of uv that say where torch's CPU build comes from. A mirror: --build-arg TORCH="--find-links https://…".
ARG TORCH="--torch-backend cpu"

FROM ${PYTHON} AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/lethe
WORKDIR /src
# Dependencies first: they change less often than the code, so this layer stays cached.
COPY pyproject.toml requirements/constraints.txt ./
RUN uv pip install --python /opt/lethe --constraints constraints.txt --requirements pyproject.toml --extra forget
COPY README.md LICENSE ./
COPY server server
COPY classifier classifier
COPY corruption corruption
COPY evaluation evaluation
RUN uv pip install --python /opt/lethe --no-deps .

# Exports the sentence encoder. The packages for that stay in this stage; the final image has no torch.
FROM build AS encoder
ARG TORCH
# TORCH is several words.
# hadolint ignore=SC2086
RUN uv pip install --python /opt/lethe $TORCH --constraints constraints.txt \
        --requirements pyproject.toml --extra fit
ENV XDG_CACHE_HOME=/opt/cache
RUN /opt/lethe/bin/python -m lethe.classifier.encoder.export

FROM ${PYTHON} AS gateway
COPY --from=build /opt/lethe /opt/lethe
COPY --from=encoder /opt/cache /opt/cache
COPY docker/health.py /opt/health.py
# The folders exist with their owner, so that new volumes get the same one. The user is a number, so that a cluster that
# requires non-root users can verify it.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin lethe \
    && install -d -o 10001 -g 10001 /var/lib/lethe/policies /var/lib/lethe/artifacts /var/lib/lethe/keys /var/log/lethe
ENV PATH=/opt/lethe/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    XDG_CACHE_HOME=/opt/cache \
    LETHE_HOST=0.0.0.0 \
    LETHE_PORT=8080 \
    LETHE_ADMIN_HOST=0.0.0.0 \
    LETHE_ADMIN_PORT=8081 \
    LETHE_KEYS=/var/lib/lethe/keys/keys.json \
    LETHE_POLICIES=/var/lib/lethe/policies \
    LETHE_ARTIFACTS=/var/lib/lethe/artifacts \
    LETHE_AUDIT=/var/log/lethe/audit.jsonl
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 8081
VOLUME ["/var/lib/lethe/policies", "/var/lib/lethe/artifacts", "/var/lib/lethe/keys", "/var/log/lethe"]
# At SIGTERM the gateway takes no new requests, finishes open ones within LETHE_DRAIN_TIMEOUT_S, and closes the audit trail.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "exec python -I /opt/health.py \"${LETHE_PORT:-8080}\""]
ENTRYPOINT ["lethe"]
CMD ["serve"]
