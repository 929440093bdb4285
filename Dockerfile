# The command line in an image: on the CPU, or with an NVIDIA GPU.
#
#   docker build -t rvos-deploy .
#   docker build -t rvos-deploy:gpu --build-arg EXTRAS=gpu,tensorrt .
#   docker run --rm --network none -v "$PWD:/work" rvos-deploy run video.mp4 "the red star" --out out
#   docker run --rm --gpus all -v "$PWD:/work" rvos-deploy:gpu doctor
#
# NOT RUN: the development machine has no Docker engine. A test lints this file.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
# The compiler builds the CPU kernel of deformable attention; the image that runs needs none.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir "build==1.*" \
    && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}
# CUDA's libraries come from wheels; the driver comes from the host, by --gpus all.
ARG EXTRAS=cpu
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013,DL3042
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]" \
    && rm -rf /wheels \
    && useradd --uid 1000 --create-home rvos \
    && mkdir /work \
    && chown rvos /work
USER 1000
WORKDIR /work
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["rvos-deploy"]
CMD ["--help"]
