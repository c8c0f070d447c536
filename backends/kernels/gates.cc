#include "backends/kernels/gates.h"

#include <algorithm>

#include "backends/attention_spec.h"
#include "backends/kernels/pool.h"
#include "backends/kernels/rounding.h"
#include "backends/kernels/transpose.h"

namespace denoised::kernels {
namespace {

// Eight rows at a time, straight from where they lie.
template <typename T>
void PackRows(const HeadRows& rows, const int32_t* tokens, int count, float* packed) {
  for (int first = 0; first < kGateLanes; first += 8) {
    const T* row[8];
    for (int i = 0; i < 8; ++i) {
      const int64_t token = tokens[first + i < count ? first + i : 0];
      row[i] = static_cast<const T*>(rows.data) + token * rows.stride;
    }
    for (int64_t d = 0; d < rows.head_size; d += 8) {
      const int64_t left = rows.head_size - d;
      __m256 x[8];
      for (int i = 0; i < 8; ++i) x[i] = LoadSome(row[i] + d, left);
      TransposeEight(x);
      const int used = static_cast<int>(std::min<int64_t>(8, left));
      for (int i = 0; i < used; ++i) StoreEight(packed + (d + i) * kGateLanes + first, x[i]);
    }
  }
}

}  // namespace

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
  if (rows.element == Element::kFloat32) return PackRows<float>(rows, tokens, count, packed);
  PackRows<uint16_t>(rows, tokens, count, packed);
}

}  // namespace denoised::kernels
