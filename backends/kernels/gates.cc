#include "backends/kernels/gates.h"

#include "backends/attention_spec.h"
#include "backends/kernels/lanes.h"
#include "backends/kernels/pool.h"

namespace denoised::kernels {
const GateKernels& GateKernelsOf(const DeviceInfo& cpu) {
  return cpu.avx512 ? kGatesAvx512 : kGatesAvx2;
}

void PackMeans(const float* means, int64_t chunks, int64_t size, float* packed) {
  for (int64_t chunk = 0; chunk < PaddedChunks(chunks); ++chunk) {
    float* to = packed + chunk / kGroup * kGroup * size + chunk % kGroup;
    for (int64_t d = 0; d < size; ++d) {
      to[d * kGroup] = chunk < chunks ? means[chunk * size + d] : 0.0f;
    }
  }
}

void PackQueries(const HeadRows& rows, const int32_t* tokens, int count, float* packed) {
  const auto pack = [&](const auto* data) {
    RowsToLanes(data, rows.stride, tokens, count, static_cast<int>(rows.head_size), kGateLanes,
                packed);
  };
  if (rows.element == Element::kFloat32) return pack(static_cast<const float*>(rows.data));
  pack(static_cast<const uint16_t*>(rows.data));
}

}  // namespace denoised::kernels
