// What the kernels use of CUDA's float16.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_FP16_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_FP16_H_

#include <c10/util/Half.h>

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half x) { return c10::detail::fp16_ieee_to_fp32_value(x.bits); }
inline __half __float2half_rn(float x) { return {c10::detail::fp16_ieee_from_fp32_value(x)}; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_FP16_H_
