#include "backends/kernels/lanes.h"

#include <immintrin.h>

#include <algorithm>

#include "backends/kernels/rounding.h"
#include "backends/kernels/transpose.h"

namespace denoised::kernels {

template <typename T>
void RowsToLanes(const T* rows, int64_t stride, const int32_t* index, int count, int size,
                 int width, float* lanes) {
  for (int first = 0; first < width; first += 8) {
    const T* row[8];
    for (int i = 0; i < 8; ++i) {
      row[i] = rows + index[first + i < count ? first + i : 0] * stride;
    }
    for (int d = 0; d < size; d += 8) {
      __m256 x[8];
      for (int i = 0; i < 8; ++i) x[i] = LoadSome(row[i] + d, size - d);
      TransposeEight(x);
      const int used = std::min(8, size - d);
      for (int i = 0; i < used; ++i) _mm256_storeu_ps(lanes + (d + i) * width + first, x[i]);
    }
  }
}

template void RowsToLanes(const float*, int64_t, const int32_t*, int, int, int, float*);
template void RowsToLanes(const uint16_t*, int64_t, const int32_t*, int, int, int, float*);

void LanesToRows(const float* lanes, int width, int size, const int32_t* index, int count,
                 int64_t stride, float* rows) {
  for (int first = 0; first < count; first += 8) {
    const int used = std::min(8, count - first);
    for (int d = 0; d < size; d += 8) {
      __m256 x[8];
      for (int i = 0; i < 8; ++i) {
        x[i] =
            d + i < size ? _mm256_loadu_ps(lanes + (d + i) * width + first) : _mm256_setzero_ps();
      }
      TransposeEight(x);
      for (int i = 0; i < used; ++i) {
        _mm256_storeu_ps(rows + index[first + i] * stride + d, x[i]);
      }
    }
  }
}

}  // namespace denoised::kernels
