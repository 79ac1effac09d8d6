# expert-router in a container: docs/containers.md. Targets: cpu (the default), baked (cpu with its weights), gpu (vLLM).
# Any base with Python 3.11 or newer and venv will do: --build-arg BASE_IMAGE=localhost/base
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-bookworm
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.25.1

FROM ${BASE_IMAGE} AS build
# requirements-ui.txt brings the chat page too.
ARG REQUIREMENTS=requirements.txt
# Packages beside them, in the versions of requirements-dev.txt where it has them: redis for shared answers, "ray[serve]" for Ray.
ARG EXTRAS=redis
WORKDIR /build
RUN python3 -m venv /opt/venv
COPY requirements*.txt ./
# An index, its credentials and its certificate come as secrets, where there are any: none is left in a layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r "${REQUIREMENTS}" ${EXTRAS} -c requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
# What drives Intel's GPUs and NPUs, a tenth of the image, is of no use in it.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && cd /opt/venv/lib/python3*/site-packages/openvino/libs \
    && rm libopenvino_intel_gpu_plugin.so libopenvino_intel_npu_plugin.so cache.json

FROM ${BASE_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="expert-router" \
      org.opencontainers.image.description="Several specialised LLM experts behind one endpoint" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
COPY models.lock LICENSE /app/
COPY configs /app/configs
COPY experts /app/experts
COPY artifacts /app/artifacts
COPY data /app/data
# All that a server writes goes below one folder: weights, prepared models, added experts, files of the moment. The home is
# not writable and holds OpenVINO's "no" to telemetry; the variables say it to the other libraries.
RUN install -d -o 10001 -g 10001 /var/lib/expert-router \
    && install -d /home/expert-router/intel && echo 0 > /home/expert-router/intel/openvino_telemetry \
    && echo 'PATH=/opt/venv/bin:$PATH' > /etc/profile.d/expert-router.sh
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/home/expert-router \
    TMPDIR=/var/lib/expert-router \
    HF_HOME=/var/lib/expert-router/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    EXPERT_ROUTER_HOME=/app \
    EXPERT_ROUTER_SERVER__HOST=0.0.0.0 \
    EXPERT_ROUTER_PATHS__CACHE=/var/lib/expert-router/cache \
    EXPERT_ROUTER_PATHS__CATALOGUE=/var/lib/expert-router/catalogue
USER 10001:10001
WORKDIR /app
VOLUME /var/lib/expert-router
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 CMD ["expert-router", "health"]
ENTRYPOINT ["expert-router"]
CMD ["serve"]

# With what a profile needs in the image, for pods that start often: nothing is fetched, nothing prepared.
# An expert is added to a catalogue that is thrown away, as that reads the questions which a server reads when it starts.
FROM runtime AS warm
ARG PROFILE=default
USER 0
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    export EXPERT_ROUTER_PATHS__CACHE=/opt/cache HF_HOME=/tmp/huggingface TMPDIR=/tmp \
    && expert-router --config "${PROFILE}" ask "What is REM sleep?" \
    && expert-router --config "${PROFILE}" explain "What is REM sleep?" \
    && EXPERT_ROUTER_PATHS__CATALOGUE=/tmp/catalogue expert-router --config "${PROFILE}" expert add any --description Any \
    && rm -rf /tmp/huggingface /tmp/catalogue && chmod -R a+rX /opt/cache

FROM runtime AS baked
ARG PROFILE=default
COPY --from=warm /opt/cache /opt/cache
ENV EXPERT_ROUTER_CONFIG=${PROFILE} \
    EXPERT_ROUTER_PATHS__CACHE=/opt/cache

# vLLM with the experts' adapters, behind a gateway whose engine is openai_http.
FROM ${VLLM_IMAGE} AS gpu
LABEL org.opencontainers.image.title="expert-router-vllm" \
      org.opencontainers.image.description="vLLM with the adapters of expert-router's experts" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY experts /app/experts
COPY deploy/vllm/serve.py /app/serve.py
RUN install -d -o 10001 -g 10001 /var/lib/vllm
# USER is for torch, which asks for a name that the number does not have.
ENV USER=vllm \
    HOME=/var/lib/vllm \
    TMPDIR=/var/lib/vllm \
    VLLM_NO_USAGE_STATS=1 \
    EXPERTS=/app/experts \
    BASE_MODEL=qwen2.5-coder-0.5b-instruct \
    MODEL=Qwen/Qwen2.5-Coder-0.5B-Instruct
USER 10001:10001
WORKDIR /app
VOLUME /var/lib/vllm
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 CMD ["python3", "/app/serve.py", "--health"]
ENTRYPOINT ["python3", "/app/serve.py"]

FROM runtime AS cpu
