// Rows into the lanes of a tile, as float32, and back: a row's numbers become a column.
#ifndef DENOISED_BACKENDS_KERNELS_LANES_H_
#define DENOISED_BACKENDS_KERNELS_LANES_H_

#include <cstdint>

namespace denoised::kernels {

// lanes[d * width + i] = rows[index[i] * stride + d] for d < size, i < count <= width; lanes past
// `count` repeat the first. width is a multiple of 8. T: float, or uint16_t for bfloat16.
template <typename T>
void RowsToLanes(const T* rows, int64_t stride, const int32_t* index, int count, int size,
                 int width, float* lanes);

// The same backwards. stride is a multiple of 8, size of 4, size <= stride.
void LanesToRows(const float* lanes, int width, int size, const int32_t* index, int count,
                 int64_t stride, float* rows);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_LANES_H_
