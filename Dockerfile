# syntax=docker/dockerfile:1
# Two stages: everything that builds stays in the first; the second has the programs, the libraries
# that they load, and a user without rights.

FROM debian:bookworm-slim AS build
ENV DENOISED_CACHE=/opt/denoised
WORKDIR /src
# Set-up first: it changes rarely, and its layer holds the large downloads.
COPY deploy/setup.sh deploy/setup.sh
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates \
    && deploy/setup.sh --build && rm -rf /var/lib/apt/lists/*
COPY CMakeLists.txt CMakePresets.json ./
COPY cmake cmake
COPY proto proto
COPY backends backends
COPY runtime runtime
COPY server server
# --build-arg DENOISED_COMMIT=$(git rev-parse --short=12 HEAD): receipts name it; no checkout is here.
ARG DENOISED_COMMIT=""
RUN cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDENOISED_TESTS=OFF \
      -DDENOISED_COMMIT="$DENOISED_COMMIT" \
      -DDENOISED_CACHE="$DENOISED_CACHE" \
    && cmake --build build --target denoised denoisectl
# What the image carries: the programs, their libraries of the torch wheel, the default model.
COPY model_repository model_repository
COPY LICENSE ./
RUN cmake --install build --prefix /stage/usr/local --strip \
    && cmake --install build --prefix /stage/usr/local --component libtorch

FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends \
      libgrpc++1.51 libprotobuf32 libprometheus-cpp-core1.0 libcpp-httplib0.11 libcivetweb1 \
      libutf8proc2 libsqlite3-0 libssl3 zlib1g libgomp1 \
      libavcodec59 libavformat59 libavutil57 libswscale6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/denoised denoised
COPY --from=build /stage/ /
USER denoised
WORKDIR /var/lib/denoised
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["denoisectl", "health", "--server=127.0.0.1:50051"]
# The admin listener stays on the container's loopback: reach it with `docker exec`. Publish the other
# two ports on trusted networks only; traffic is neither encrypted nor authenticated.
ENTRYPOINT ["denoised"]
CMD ["--model_repository=/usr/local/share/denoised/model_repository", "--insecure_public", \
     "--listen=0.0.0.0:50051", "--http_listen=0.0.0.0:8080", "--admin_listen=127.0.0.1:50052", \
     "--state_dir=/var/lib/denoised/state"]
