# syntax=docker/dockerfile:1
# Targets: the service (the default: API, worker and migration; the command decides) and `client`,
# the SDK and the command line without torch.
ARG PYTHON=python:3.12.12-slim-bookworm
ARG NODE=node:24.19.0-bookworm-slim

FROM ${NODE} AS dashboard
WORKDIR /src/dashboard
COPY dashboard/.npmrc dashboard/package.json dashboard/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY dashboard ./
# Writes to ../service/static.
RUN npm run build

FROM ${PYTHON} AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sharpzo
ENV PATH=/opt/sharpzo/bin:$PATH
WORKDIR /src

FROM base AS source
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY sharpzo_cli sharpzo_cli
COPY sharpzo_client sharpzo_client
COPY sharpzo_core sharpzo_core
COPY sharpzo_engine sharpzo_engine
COPY worker worker

FROM base AS build-client
# Nothing is installed whose hash is not known.
COPY docker/client.lock ./
RUN pip install --require-hashes --no-deps --requirement client.lock
COPY --from=source /src ./
RUN pip install --no-deps --no-build-isolation . && pip check

FROM base AS build
# Where torch comes from: this index has builds without CUDA; https://pypi.org/simple has those with.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Torch first, in a layer of its own: it is large and changes rarely.
COPY docker/torch.txt ./
RUN pip install --index-url "${TORCH_INDEX}" --requirement torch.txt
# Nothing else is installed whose hash is not known.
COPY docker/requirements.lock ./
RUN pip install --require-hashes --no-deps --requirement requirements.lock
COPY --from=source /src ./
COPY --from=dashboard /src/service/static service/static
RUN pip install --no-deps --no-build-isolation . && pip check

FROM ${PYTHON} AS client
RUN useradd --system --uid 10001 --user-group --create-home sharpzo
COPY --from=build-client /opt/sharpzo /opt/sharpzo
ENV PATH=/opt/sharpzo/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/sharpzo
ENTRYPOINT ["sharpzo"]
CMD ["--help"]

FROM ${PYTHON}
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/sharpzo sharpzo \
    && install --directory --owner sharpzo --group sharpzo --mode 0750 \
        /var/lib/sharpzo /var/lib/sharpzo-artifacts
COPY --from=build /opt/sharpzo /opt/sharpzo
COPY docker/healthcheck.py /opt/sharpzo/healthcheck.py
ENV PATH=/opt/sharpzo/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/sharpzo/cache/huggingface \
    MPLCONFIGDIR=/var/lib/sharpzo/cache/matplotlib \
    SHARPZO_DATA_DIR=/var/lib/sharpzo \
    SHARPZO_ARTIFACT_URL=/var/lib/sharpzo-artifacts
USER 10001:10001
WORKDIR /var/lib/sharpzo
VOLUME ["/var/lib/sharpzo", "/var/lib/sharpzo-artifacts"]
EXPOSE 8000
CMD ["sharpzo", "serve", "--host", "0.0.0.0", "--port", "8000", "--no-worker"]
