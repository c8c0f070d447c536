// Rows of q, k and v into the units of kernels/tile.h, and finished tiles back into rows.
#ifndef DENOISED_BACKENDS_KERNELS_PACK_H_
#define DENOISED_BACKENDS_KERNELS_PACK_H_

#include <cstdint>

#include "backends/kernels/block_sparse.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {

// What q and k are multiplied as: as they are, or rounded to 8 bits and held in units of four bytes
// or of two 16-bit words.
enum class Scores : uint8_t { kExact, kBytes, kWords };

// How rows of `element` become units: bfloat16 stays pairs where the kernel multiplies pairs, and
// is widened to float32 where it does not.
struct UnitFormat {
  Element element = Element::kFloat32;
  bool pairs = false;              // units of values, and of exact scores, are two bfloat16
  Scores scores = Scores::kExact;  // of q and k
  bool tiles = false;              // keys and values in tiles of 16 rows by 16 units; pairs
  int head_size = 0;
  bool int8() const { return scores != Scores::kExact; }
  int padded_size() const {  // whole tiles are 16 units wide
    const int multiple = !tiles ? 4 : int8() ? 64 : 32;
    return (head_size + multiple - 1) / multiple * multiple;
  }
  int key_group() const { return tiles ? kTileKeyGroup : kGroup; }  // blocks are padded to it
  int units() const { return pairs ? padded_size() / 2 : padded_size(); }
  int score_units() const {
    return !int8() ? units() : scores == Scores::kBytes ? padded_size() / 4 : padded_size() / 2;
  }
  int keys_per_unit() const { return pairs ? 2 : 1; }
};

// Where the rows of one head are: row(i) = data + order[first + i] * stride.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;              // elements
  const int32_t* order = nullptr;  // null: identity
  Span span;
};

// [length4 / 4][units][4], or in tiles; rows past the span are zeros.
void PackKeys(const UnitFormat& format, const Rows& rows, uint32_t* out);

// The same in int8, each row less `mean` and scaled to 127; scale[i] undoes it, and is NaN where
// the row has something that is not finite. Bytes are plus 128, words are signed.
void PackKeysInt8(const UnitFormat& format, const Rows& rows, const float* mean, uint32_t* out,
                  float* scale);

// [padded_size / 4][length4 / keys_per_unit][4], or in tiles. What is not finite is packed as 0, so
// that a weight of 0 hides it from a row that does not attend it; true where there was any, and the
// caller then adds it to the rows that do (LoadValue).
bool PackValues(const UnitFormat& format, const Rows& rows, uint32_t* out);

// Row i as the kernel would multiply it, [head_size].
void LoadValue(const UnitFormat& format, const Rows& rows, int i, float* out);

// [units][width]; lanes past the span are zeros.
void PackQuery(const UnitFormat& format, const Rows& rows, int width, uint32_t* out);

// The same in int8; offset[i] = -128 * sum of the row's bytes, or 0 with words.
void PackQueryInt8(const UnitFormat& format, const Rows& rows, int width, uint32_t* out,
                   float* scale, int32_t* offset);

// Sums of rows first .. first + length - 1, divided by the length: [padded_size] float32.
void MeanOfRows(const UnitFormat& format, const Rows& rows, float* mean);

// rows[i] = out[.][i] / sums[i], rounded to nearest even in bfloat16; `nothing` (0 or NaN) where
// sums[i] is 0.
void StoreTile(const UnitFormat& format, const float* out, const float* sums, int width,
               float nothing, const Rows& rows);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_PACK_H_
