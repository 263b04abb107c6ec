# ftbert with TensorFlow: training, fast_modeling and the Session runtime.   docker build -t ftbert .
# GPU: run with --gpus all; the CUDA engine is compiled in this stage, cuBLAS comes as a Python package.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04

FROM ${CUDA_IMAGE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ftbert
WORKDIR /src
COPY . .
RUN FTBERT_REQUIRE_TENSORFLOW=1 /opt/ftbert/bin/pip install --no-cache-dir '.[serve,cuda]'

FROM ubuntu:24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home ftbert
COPY --from=build /opt/ftbert /opt/ftbert
ENV PATH=/opt/ftbert/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ftbert
RUN ftbert doctor
EXPOSE 8000
ENTRYPOINT ["ftbert"]
CMD ["doctor"]
