# The operator's image: docker build --file images/operator.Dockerfile --tag amdahl-loop/operator:dev .
# Everything that is installed is pinned by hash, the base by digest; what only the build needs stays in the first stage.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY images/build.lock images/operator.lock images/
RUN ["python3", "-m", "venv", "/tools"]
RUN ["/tools/bin/pip", "install", "--require-hashes", "--requirement", "images/build.lock"]
RUN ["python3", "-m", "venv", "--without-pip", "/venv"]
RUN ["/tools/bin/pip", "--python", "/venv/bin/python", "install", "--require-hashes", "--requirement", "images/operator.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY operator/amdahl_loop operator/amdahl_loop
COPY trainer_image/amdahl_probe trainer_image/amdahl_probe
COPY trainer_image/amdahl_trainer trainer_image/amdahl_trainer
RUN ["/tools/bin/pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "/wheels", "."]
RUN ["/tools/bin/pip", "--python", "/venv/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "amdahl-loop"]
RUN ["/venv/bin/python", "-c", "import amdahl_loop.handlers"]

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="amdahl-loop operator" \
      org.opencontainers.image.description="Training jobs that optimise themselves, and prove it before they change anything" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No installer is left within reach: of the interpreter's own, where python.org's build has it, and where Debian's has it.
RUN ["rm", "-rf", "/usr/local/lib/python3.11/site-packages", "/usr/local/lib/python3.11/ensurepip", "/usr/local/bin/pip", "/usr/local/bin/pip3", "/usr/local/bin/pip3.11", "/usr/lib/python3.11/ensurepip", "/usr/share/python-wheels"]
COPY --from=build /venv /venv
# The root file system is read-only where the chart runs it, so nothing is compiled at run time.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, not a name: Kubernetes must see that it is not root.
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["amdahl-loop-operator"]
