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
RUN cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDENOISED_TESTS=OFF \
      -DDENOISED_CACHE="$DENOISED_CACHE" \
    && cmake --build build --target denoised denoisectl \
    && strip build/bin/denoised build/bin/denoisectl
# What the programs load of the torch wheel, under the path that they look for it.
RUN libtorch="$DENOISED_CACHE/libtorch-2.11.0" && stage="/stage$libtorch" \
    && mkdir -p "$stage/torch/lib" \
    && cp "$libtorch"/torch/lib/libtorch_cpu.so "$libtorch"/torch/lib/libc10.so \
          "$libtorch"/torch/lib/libgomp* "$stage/torch/lib/" \
    && for dir in "$libtorch"/nvidia/*/lib; do \
         mkdir -p "$stage${dir#"$libtorch"}"; \
         cp "$dir"/libcudart.so* "$dir"/libcupti.so* "$stage${dir#"$libtorch"}/"; \
       done

FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends \
      libgrpc++1.51 libprotobuf32 libprometheus-cpp-core1.0 libcpp-httplib0.11 libcivetweb1 \
      libutf8proc2 libssl3 zlib1g libgomp1 \
      libavcodec59 libavformat59 libavutil57 libswscale6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/denoised denoised
COPY --from=build /stage/ /
COPY --from=build /src/build/bin/denoised /src/build/bin/denoisectl /usr/local/bin/
COPY model_repository /usr/share/denoised/model_repository
USER denoised
WORKDIR /var/lib/denoised
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["denoisectl", "health", "--server=127.0.0.1:50051"]
# The admin listener stays on the container's loopback: reach it with `docker exec`. Publish the other
# two ports on trusted networks only; traffic is neither encrypted nor authenticated.
ENTRYPOINT ["denoised"]
CMD ["--model_repository=/usr/share/denoised/model_repository", "--insecure_public", \
     "--listen=0.0.0.0:50051", "--http_listen=0.0.0.0:8080", "--admin_listen=127.0.0.1:50052", \
     "--state_dir=/var/lib/denoised/state"]
