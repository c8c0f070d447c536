// How rows of x and of W become what the GEMM's tiles read, and int32 sums what float32 ones are.
// Raw pointers; any thread.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_PACK_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_PACK_H_

#include <cstdint>

#include "backends/kernels/gemm_kernels.h"

namespace denoised::kernels {

// A matrix of `rows` rows of k numbers; the stride in elements.
struct RowSource {
  const void* data;
  Element element;
  int64_t rows;
  int64_t k;
  int64_t stride;
};

// `height` rows from `first` on, of which those past the last are zeros, as a tile has them: in
// int8 as bytes plus 128, or as words, and scales[height] is what one of a row is worth; NaN where
// the row is not all finite.
void PackTileRows(const GemmKernel& kernel, const RowSource& source, int64_t first, int height,
                  uint32_t* out, float* scales);

// Rows of W, columns of y, from `first` on, as one panel [units][kPanelColumns]; in int8 signed,
// and with what PackTileRows says of scales; offsets is what a column's sum of products lacks,
// where rows of x are plus 128.
void PackPanel(const GemmKernel& kernel, const RowSource& weight, int64_t first, char* out,
               float* scales, int32_t* offsets);

// The first `columns` of a panel of kFloats or kPairs back to rows of k numbers.
void UnpackPanel(const GemmKernel& kernel, Element element, const char* panel, int64_t columns,
                 int64_t k, char* out);

// float(sum + offset) * row_scale * scale, in place; `columns` in eights.
void ScaleSums(float* sums, float row_scale, const float* scales, const int32_t* offsets,
               int64_t columns);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_PACK_H_
