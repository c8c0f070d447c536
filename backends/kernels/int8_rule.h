// How a row of a query or key becomes bytes (SageAttention, arXiv 2410.02367): one scale a row,
// the largest magnitude at 127, elements rounded to nearest, ties to even. The CUDA kernel computes
// with these functions, int8_rows.cc with vectors of the same operations: the same bytes and
// scales.
//
// Host and device; no errors. float32 in, with IEEE rounding of every step.
#ifndef DENOISED_BACKENDS_KERNELS_INT8_RULE_H_
#define DENOISED_BACKENDS_KERNELS_INT8_RULE_H_

#include <cmath>

#ifdef __CUDACC__
#define DENOISED_HOST_DEVICE __host__ __device__
#else
#define DENOISED_HOST_DEVICE
#endif

namespace denoised::kernels {

inline constexpr float kInt8Most = 127.0f;

// The larger of two magnitudes; NaN where one of them is, unlike fmaxf.
DENOISED_HOST_DEVICE inline float Int8Larger(float a, float b) { return a > b || a != a ? a : b; }

// What a byte is worth in a row whose largest magnitude is `most`; 1 where the row is zeros. NaN
// where it is not finite: then the whole row is not, whatever its bytes are.
DENOISED_HOST_DEVICE inline float Int8Scale(float most) {
  if (most - most != 0) return most - most;
  return most > 0 ? most / kInt8Most : 1.0f;
}

// `x` in units of the scale; `inverse` is 1 / scale. -127 .. 127.
DENOISED_HOST_DEVICE inline int Int8Of(float x, float inverse) {
  return static_cast<int>(rintf(fminf(fmaxf(x * inverse, -kInt8Most), kInt8Most)));
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_INT8_RULE_H_
