// What the kernels use of CUDA's bfloat16.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_BF16_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_BF16_H_

#include <c10/util/BFloat16.h>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return c10::detail::f32_from_bits(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {c10::detail::round_to_nearest_even(x)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_BF16_H_
