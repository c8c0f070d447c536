// The kernels of gates.h on AVX2 and FMA.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/gates.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx2.h"

struct Lanes : Float32 {
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Select(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  static uint32_t AtLeast(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static F AddAtLeast(F sum, F x, F floor) {
    return _mm256_add_ps(sum, _mm256_and_ps(x, _mm256_cmp_ps(x, floor, _CMP_GE_OQ)));
  }

  struct Doubles {
    __m256d low, high;
  };
  static void AddDoubles(Doubles* sums, F x) {
    sums->low = _mm256_add_pd(sums->low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sums->high = _mm256_add_pd(sums->high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
  }
  static Doubles Sum(const Doubles& a, const Doubles& b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  static void StoreDoubles(double* p, const Doubles& x) {
    _mm256_storeu_pd(p, x.low);
    _mm256_storeu_pd(p + 4, x.high);
  }
};

#include "backends/kernels/tile_impl.h"
// After what it needs of that.
#include "backends/kernels/gates_impl.h"

}  // namespace

constinit const GateKernels kGatesAvx2 = KernelsOver<Lanes>();

}  // namespace denoised::kernels
