// Rows of queries and keys as int8: the rule of int8_rule.h with vectors of eight floats. AVX2. For
// pack.cc, which packs them; raw pointers only, no state, no errors.
#ifndef DENOISED_BACKENDS_KERNELS_INT8_ROWS_H_
#define DENOISED_BACKENDS_KERNELS_INT8_ROWS_H_

#include <cstdint>

#include "backends/kernels/pack.h"

namespace denoised::kernels {

// row[count] becomes bytes of at most 127 in magnitude, zeros up to the next multiple of 32;
// returns what undoes it. `row` is readable up to there, and aligned to 32 bytes.
float QuantiseRow(const float* row, int count, uint32_t* out);

// Sum of `count` signed bytes, a multiple of 32.
int32_t SumOfBytes(const uint32_t* bytes, int count);

// A quantised row in the format's units, from `bytes` of them: keys of bytes are plus 128.
void StoreQuantised(const UnitFormat& format, const uint32_t* bytes, bool key, uint32_t* out);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_INT8_ROWS_H_
