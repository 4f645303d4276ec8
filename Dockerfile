# One image for both: the engine (`penstock`, in a job's pods) and the controller (`penstock-operator`). `./dev image` fills the
# build context with stripped binaries; nothing is fetched while the image is built.
ARG BASE=debian:12-slim
FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="Structured streaming on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# The C++ runtime and zlib, beside the binaries: a base need not have them.
COPY lib/ /usr/local/lib/penstock/
COPY bin/ /usr/local/bin/
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV LD_LIBRARY_PATH=/usr/local/lib/penstock
# OpenSSL looks where a package would have put them; a slim base has no such package.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 10001:10001
ENTRYPOINT ["penstock"]
