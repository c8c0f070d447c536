#include "backends/kernels/gates.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backends/attention_spec.h"
#include "backends/kernels/lanes.h"

namespace denoised::kernels {
namespace {

// The leaves of Dot's tree have this order. A row's numbers are packed lane by lane, so that a
// kernel can do the same one lane after the other.
constexpr int kPlace[kDotLanes] = {0, 4, 2, 6, 1, 5, 3, 7};

// Where number d of a row goes; what Dot adds at the end stays at the end.
int64_t UnitOf(int64_t d, int64_t size) {
  const int64_t units = size / kDotLanes;
  return d < units * kDotLanes ? kPlace[d % kDotLanes] * units + d / kDotLanes : d;
}

}  // namespace

const GateKernels& GateKernelsOf(const DeviceInfo& cpu) {
  return cpu.avx512 ? kGatesAvx512 : kGatesAvx2;
}

void PackMeans(const float* means, int64_t chunks, int64_t size, float* packed) {
  for (int64_t chunk = 0; chunk < PaddedChunks(chunks); ++chunk) {
    float* to = packed + chunk / kGroup * kGroup * size + chunk % kGroup;
    for (int64_t d = 0; d < size; ++d) {
      to[UnitOf(d, size) * kGroup] = chunk < chunks ? means[chunk * size + d] : 0.0f;
    }
  }
}

void PackQueries(const float* queries, int64_t stride, int count, int64_t size, float* packed) {
  int32_t index[kGateLanes];
  std::iota(index, index + kGateLanes, 0);
  alignas(64) float lanes[kDotLanes * kGateLanes];
  for (int64_t first = 0; first < size; first += kDotLanes) {
    RowsToLanes(queries + first, stride, index, count, kDotLanes, kGateLanes, lanes);
    for (int64_t d = first; d < std::min<int64_t>(size, first + kDotLanes); ++d) {
      std::memcpy(packed + UnitOf(d, size) * kGateLanes, lanes + (d - first) * kGateLanes,
                  kGateLanes * sizeof(float));
    }
  }
}

}  // namespace denoised::kernels
