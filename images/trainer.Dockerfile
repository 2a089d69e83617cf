# The trainer's image, with PyTorch for CUDA: docker build --file images/trainer.Dockerfile --tag amdahl-loop/trainer:dev .
# A job needs none of it: the loop tunes any image that holds Python and PyTorch. The steps are those of operator.Dockerfile, and a compiler.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY images/build.lock images/trainer.lock images/
RUN ["python3", "-m", "venv", "/tools"]
RUN ["/tools/bin/pip", "install", "--require-hashes", "--requirement", "images/build.lock"]
RUN ["python3", "-m", "venv", "--without-pip", "/venv"]
RUN ["/tools/bin/pip", "--python", "/venv/bin/python", "install", "--require-hashes", "--requirement", "images/trainer.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY operator/amdahl_loop operator/amdahl_loop
COPY trainer_image/amdahl_probe trainer_image/amdahl_probe
COPY trainer_image/amdahl_trainer trainer_image/amdahl_trainer
RUN ["/tools/bin/pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "/wheels", "."]
RUN ["/tools/bin/pip", "--python", "/venv/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "amdahl-loop"]
RUN ["/venv/bin/python", "-c", "import amdahl_trainer.entry"]

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="amdahl-loop trainer" \
      org.opencontainers.image.description="A PyTorch trainer that reports where its time goes and switches settings while it runs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No installer is left within reach: of the interpreter's own, where python.org's build has it, and where Debian's has it.
RUN ["rm", "-rf", "/usr/local/lib/python3.11/site-packages", "/usr/local/lib/python3.11/ensurepip", "/usr/local/bin/pip", "/usr/local/bin/pip3", "/usr/local/bin/pip3.11", "/usr/lib/python3.11/ensurepip", "/usr/share/python-wheels"]
# Torch compiles with the machine's own compilers (run.compile): g++ brings gcc and the C library's headers. The base has Python's.
RUN ["sh", "-c", "apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*"]
COPY --from=build /venv /venv
RUN ["/venv/bin/python", "-c", "import torch; from amdahl_trainer import compiled; [compiled.check(torch.device(kind)) for kind in ('cpu', 'cuda')]"]
COPY trainer_image/configs /configs
# The root file system may be read-only: whatever libraries keep for themselves goes to /tmp, a volume of the pod.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# A number, not a name: Kubernetes must see that it is not root.
USER 65532:65532
EXPOSE 9178
ENTRYPOINT ["python", "-m", "amdahl_trainer"]
