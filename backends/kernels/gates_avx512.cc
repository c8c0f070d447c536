// The kernels of gates.h on AVX-512 (F, DQ, BW, VL).
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/gates.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512.h"

struct Lanes : Float32 {
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Select(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
  }
  static uint32_t AtLeast(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static F AddAtLeast(F sum, F x, F floor) {
    return _mm512_mask_add_ps(sum, _mm512_cmp_ps_mask(x, floor, _CMP_GE_OQ), sum, x);
  }

  struct Doubles {
    __m512d low, high;
  };
  static void AddDoubles(Doubles* sums, F x) {
    sums->low = _mm512_add_pd(sums->low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    sums->high = _mm512_add_pd(sums->high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
  }
  static Doubles Sum(const Doubles& a, const Doubles& b) {
    return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)};
  }
  static void StoreDoubles(double* p, const Doubles& x) {
    _mm512_storeu_pd(p, x.low);
    _mm512_storeu_pd(p + 8, x.high);
  }
};

#include "backends/kernels/tile_impl.h"
// After what it needs of that.
#include "backends/kernels/gates_impl.h"

}  // namespace

constinit const GateKernels kGatesAvx512 = KernelsOver<Lanes>();

}  // namespace denoised::kernels
