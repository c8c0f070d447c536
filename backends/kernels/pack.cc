#include "backends/kernels/pack.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "backends/kernels/int8_rows.h"
#include "backends/kernels/pool.h"
#include "backends/kernels/rounding.h"
#include "backends/kernels/transpose.h"

namespace denoised::kernels {
namespace {

constexpr int kMaxUnits = kMaxHeadSize;

const char* RowAt(const UnitFormat& format, const Rows& rows, int i) {
  const int64_t size = ElementBytes(format.element);
  const int position = rows.span.first + i;
  const int64_t token = rows.order != nullptr ? rows.order[position] : position;
  return static_cast<const char*>(rows.data) + token * rows.stride * size;
}

// Round to nearest even, in the low half of each lane; NaN stays NaN.
__m128i ToBfloat16(__m128 x) {
  const __m128i bits = _mm_castps_si128(x);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded =
      _mm_srli_epi32(_mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd), 16);
  const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(x, x));
  return _mm_blendv_epi8(rounded, _mm_set1_epi32(0x7fc0), nan);
}

// One row as float32, zeros up to padded_size; rows past the span are zeros.
void FloatRow(const UnitFormat& format, const Rows& rows, int i, float* out) {
  std::memset(out, 0, static_cast<size_t>(format.padded_size()) * 4);
  if (i >= rows.span.length) return;
  const char* row = RowAt(format, rows, i);
  if (format.element == Element::kFloat32) {
    std::memcpy(out, row, static_cast<size_t>(format.head_size) * 4);
    return;
  }
  const uint16_t* half = reinterpret_cast<const uint16_t*>(row);
  int d = 0;
  for (; d + 8 <= format.head_size; d += 8) {
    StoreEight(out + d, LoadEight(half + d));
  }
  for (; d < format.head_size; ++d) out[d] = LoadOne(half + d);
}

// One row in the units that values and unquantised scores use. Returns the caller's own row where
// it needs no change, else `scratch`.
const void* PaddedRow(const UnitFormat& format, const Rows& rows, int i, uint32_t* scratch) {
  const bool wide = format.element == Element::kFloat32;
  const bool same = wide != format.pairs;
  if (same && i < rows.span.length && format.head_size == format.padded_size()) {
    return RowAt(format, rows, i);
  }
  if (same && !wide) {
    std::memset(scratch, 0, static_cast<size_t>(format.units()) * 4);
    if (i < rows.span.length) {
      std::memcpy(scratch, RowAt(format, rows, i), static_cast<size_t>(format.head_size) * 2);
    }
    return scratch;
  }
  float* row = reinterpret_cast<float*>(scratch);
  FloatRow(format, rows, i, row);
  if (same || !wide) return scratch;
  for (int d = 0; d < format.padded_size(); d += 4) {  // float32 to pairs, in place
    const __m128i half = ToBfloat16(_mm_loadu_ps(row + d));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(scratch + d / 2), _mm_packus_epi32(half, half));
  }
  return scratch;
}

int RoundUpTo32(int x) { return (x + 31) / 32 * 32; }

// Whether all exponents of `units` units are below the largest.
bool AllFinite(const void* row, int units, bool pairs) {
  const auto* unit = static_cast<const uint32_t*>(row);
  const __m256i exponent = _mm256_set1_epi32(pairs ? 0x7f807f80 : 0x7f800000);
  __m256i found = _mm256_setzero_si256();
  int u = 0;
  for (; u + 8 <= units; u += 8) {
    const __m256i x =
        _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit + u)), exponent);
    found = _mm256_or_si256(
        found, pairs ? _mm256_cmpeq_epi16(x, exponent) : _mm256_cmpeq_epi32(x, exponent));
  }
  bool finite = _mm256_testz_si256(found, found) != 0;
  for (; u < units; ++u) {
    uint32_t bits;
    std::memcpy(&bits, unit + u, 4);
    const bool high = (bits & 0x7f800000u) != 0x7f800000u, low = (bits & 0x7f80u) != 0x7f80u;
    finite = finite && high && (low || !pairs);
  }
  return finite;
}

// Row i of the values, with zeros for what is not finite; `*odd` then becomes true.
const void* FiniteRow(const UnitFormat& format, const Rows& rows, int i, uint32_t* scratch,
                      bool* odd) {
  const void* row = PaddedRow(format, rows, i, scratch);
  const uint32_t exponent = format.pairs ? 0x7f80u : 0x7f800000u;
  const auto finite = [&](uint32_t bits) { return (bits & exponent) != exponent; };
  const int units = format.units();
  if (AllFinite(row, units, format.pairs)) return row;
  *odd = true;
  if (row != scratch) std::memcpy(scratch, row, static_cast<size_t>(units) * 4);
  for (int u = 0; u < units; ++u) {
    if (!finite(scratch[u])) scratch[u] &= format.pairs ? 0xffff0000u : 0;
    if (format.pairs && !finite(scratch[u] >> 16)) scratch[u] &= 0xffffu;
  }
  return scratch;
}

// Four rows at a time, with room for those that need a padded copy.
struct FourRows {
  FourRows() = default;
  FourRows(const UnitFormat& format, const Rows& rows, int first) {
    for (int r = 0; r < 4; ++r) row[r] = PaddedRow(format, rows, first + r, scratch[r]);
  }
  // Of values.
  FourRows(const UnitFormat& format, const Rows& rows, int first, bool* odd) {
    for (int r = 0; r < 4; ++r) row[r] = FiniteRow(format, rows, first + r, scratch[r], odd);
  }
  __m128i Load(int r, int unit) const {
    return _mm_loadu_si128(
        reinterpret_cast<const __m128i*>(static_cast<const uint32_t*>(row[r]) + unit));
  }
  const void* row[4];
  uint32_t scratch[4][kMaxUnits];
};

void Transpose(__m128i (&x)[4]) {
  const __m128i a = _mm_unpacklo_epi32(x[0], x[1]), b = _mm_unpacklo_epi32(x[2], x[3]);
  const __m128i c = _mm_unpackhi_epi32(x[0], x[1]), d = _mm_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm_unpacklo_epi64(a, b);
  x[1] = _mm_unpackhi_epi64(a, b);
  x[2] = _mm_unpacklo_epi64(c, d);
  x[3] = _mm_unpackhi_epi64(c, d);
}

void Store(uint32_t* p, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }

// Four rows as columns, from unit `u` on: out[unit * stride + r]. Units come in fours, but for a
// last pair where pairs of bfloat16 make padded_size / 2 odd by two.
void TransposeRows(const FourRows& four, int u, int units, uint32_t* out, int64_t stride) {
  for (; u + 4 <= units; u += 4) {
    __m128i x[4] = {four.Load(0, u), four.Load(1, u), four.Load(2, u), four.Load(3, u)};
    Transpose(x);
    for (int i = 0; i < 4; ++i) Store(out + (u + i) * stride, x[i]);
  }
  for (; u < units; ++u) {
    for (int r = 0; r < 4; ++r) {
      std::memcpy(out + u * stride + r, static_cast<const uint32_t*>(four.row[r]) + u, 4);
    }
  }
}

// The same of eight rows.
void TransposeRows(const FourRows& low, const FourRows& high, int units, uint32_t* out,
                   int64_t stride) {
  int u = 0;
  for (; u + 8 <= units; u += 8) {
    __m256 x[8];
    for (int r = 0; r < 4; ++r) {
      x[r] = _mm256_loadu_ps(static_cast<const float*>(low.row[r]) + u);
      x[r + 4] = _mm256_loadu_ps(static_cast<const float*>(high.row[r]) + u);
    }
    TransposeEight(x);
    for (int i = 0; i < 8; ++i) {
      _mm256_storeu_ps(reinterpret_cast<float*>(out + (u + i) * stride), x[i]);
    }
  }
  TransposeRows(low, u, units, out, stride);
  TransposeRows(high, u, units, out + 4, stride);
}

// Two rows of bfloat16, element by element: one group of four pairs a step.
void InterleavePair(const void* even, const void* odd, int padded_size, uint32_t* out,
                    int64_t group_stride) {
  for (int d = 0; d < padded_size; d += 4) {
    const __m128i a =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(even) + d));
    const __m128i b =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(odd) + d));
    Store(out + (d / 4) * group_stride, _mm_unpacklo_epi16(a, b));
  }
}

int PaddedLength(const UnitFormat& format, const Rows& rows) {
  return (rows.span.length + format.key_group() - 1) / format.key_group() * format.key_group();
}

// Where unit (row, column) of a matrix lies that is cut into tiles of 16 x 16 units.
int64_t TilePlace(int row, int column, int columns) {
  return (static_cast<int64_t>(row / 16) * (columns / 16) + column / 16) * 256 + row % 16 * 16 +
         column % 16;
}

void StoreTileRows(const FourRows& four, int first, int units, uint32_t* out) {
  for (int r = 0; r < kGroup; ++r) {
    for (int u = 0; u < units; u += 16) {
      std::memcpy(out + TilePlace(first + r, u, units),
                  static_cast<const uint32_t*>(four.row[r]) + u, 64);
    }
  }
}

void PackKeyTiles(const UnitFormat& format, const Rows& rows, uint32_t* out) {
  for (int key = 0; key < PaddedLength(format, rows); key += kGroup) {
    StoreTileRows(FourRows(format, rows, key), key, format.units(), out);
  }
}

// Transposed: rows of the matrix are head-size columns, its units are pairs of keys.
bool PackValueTiles(const UnitFormat& format, const Rows& rows, uint32_t* out) {
  uint32_t scratch[2][kMaxUnits];
  const int padded = PaddedLength(format, rows);
  bool odd = false;
  for (int key = 0; key < padded; key += 2) {
    const uint16_t* half[2];
    for (int i = 0; i < 2; ++i) {
      half[i] = static_cast<const uint16_t*>(FiniteRow(format, rows, key + i, scratch[i], &odd));
    }
    for (int d = 0; d < format.padded_size(); ++d) {
      out[TilePlace(d, key / 2, padded / 2)] = half[0][d] | static_cast<uint32_t>(half[1][d]) << 16;
    }
  }
  return odd;
}

// Eight queries at a time: their columns, divided by their sums, become rows.
template <class T>
void StoreRows(const UnitFormat& format, const float* out, const float* sums, int width,
               float nothing, const Rows& rows) {
  const int size = format.head_size, padded = format.padded_size();
  for (int q = 0; q < rows.span.length; q += 8) {
    const int used = std::min(8, rows.span.length - q);
    T* row[8];
    for (int i = 0; i < used; ++i) {
      row[i] = reinterpret_cast<T*>(const_cast<char*>(RowAt(format, rows, q + i)));
    }
    const __m256 sum = _mm256_loadu_ps(sums + q);
    const __m256 factor =
        _mm256_blendv_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), sum), _mm256_set1_ps(nothing),
                         _mm256_cmp_ps(sum, _mm256_setzero_ps(), _CMP_EQ_OQ));
    for (int d = 0; d < size; d += 8) {
      const int columns = std::min(8, padded - d);
      __m256 x[8];
      for (int i = 0; i < 8; ++i) {
        x[i] = i < columns ? _mm256_mul_ps(_mm256_loadu_ps(out + (d + i) * width + q), factor)
                           : _mm256_setzero_ps();
      }
      TransposeEight(x);
      for (int i = 0; i < used; ++i) StoreSome(row[i] + d, size - d, x[i]);
    }
  }
}

}  // namespace

void PackKeys(const UnitFormat& format, const Rows& rows, uint32_t* out) {
  if (format.tiles) return PackKeyTiles(format, rows, out);
  for (int key = 0; key < rows.span.length; key += kGroup) {
    const FourRows four(format, rows, key);
    TransposeRows(four, 0, format.units(), out + static_cast<int64_t>(key) * format.units(),
                  kGroup);
  }
}

void PackQuery(const UnitFormat& format, const Rows& rows, int width, uint32_t* out) {
  for (int q = 0; q < width; q += 8) {
    const FourRows low(format, rows, q), high(format, rows, q + 4);
    TransposeRows(low, high, format.units(), out + q, width);
  }
}

void PackKeysInt8(const UnitFormat& format, const Rows& rows, const float* mean, uint32_t* out,
                  float* scale) {
  const int units = format.score_units(), count = RoundUpTo32(format.padded_size());
  alignas(32) float row[kMaxHeadSize] = {};
  uint32_t bytes[kMaxHeadSize / 4];
  for (int key = 0; key < PaddedLength(format, rows); key += kGroup) {
    FourRows four;
    for (int r = 0; r < kGroup; ++r) {
      FloatRow(format, rows, key + r, row);
      for (int d = 0; d < format.head_size; ++d) row[d] -= mean[d];
      scale[key + r] = QuantiseRow(row, count, bytes);
      StoreQuantised(format, bytes, /*key=*/true, four.scratch[r]);
      four.row[r] = four.scratch[r];
    }
    if (format.tiles) {
      StoreTileRows(four, key, units, out);
    } else {
      TransposeRows(four, 0, units, out + static_cast<int64_t>(key) * units, kGroup);
    }
  }
}

void PackQueryInt8(const UnitFormat& format, const Rows& rows, int width, uint32_t* out,
                   float* scale, int32_t* offset) {
  const int count = RoundUpTo32(format.padded_size());
  const bool words = format.scores == Scores::kWords;
  alignas(32) float row[kMaxHeadSize] = {};
  uint32_t bytes[kMaxHeadSize / 4];
  for (int q = 0; q < width; q += kGroup) {
    FourRows four;
    for (int r = 0; r < kGroup; ++r) {
      FloatRow(format, rows, q + r, row);
      scale[q + r] = QuantiseRow(row, count, bytes);
      offset[q + r] = words ? 0 : -128 * SumOfBytes(bytes, count);
      StoreQuantised(format, bytes, /*key=*/false, four.scratch[r]);
      four.row[r] = four.scratch[r];
    }
    TransposeRows(four, 0, format.score_units(), out + q, width);
  }
}

void MeanOfRows(const UnitFormat& format, const Rows& rows, float* mean) {
  alignas(16) float row[kMaxHeadSize];
  std::fill(mean, mean + format.padded_size(), 0.0f);
  for (int i = 0; i < rows.span.length; ++i) {
    FloatRow(format, rows, i, row);
    for (int d = 0; d < format.head_size; ++d) mean[d] += row[d];
  }
  for (int d = 0; d < format.head_size; ++d) mean[d] /= static_cast<float>(rows.span.length);
}

bool PackValues(const UnitFormat& format, const Rows& rows, uint32_t* out) {
  if (format.tiles) return PackValueTiles(format, rows, out);
  const int padded_size = format.padded_size();
  const int padded = (rows.span.length + kGroup - 1) / kGroup * kGroup;
  const int64_t group_stride = static_cast<int64_t>(padded) / format.keys_per_unit() * 4;
  bool odd = false;
  for (int key = 0; key < padded; key += kGroup) {
    const FourRows four(format, rows, key, &odd);
    if (format.pairs) {
      InterleavePair(four.row[0], four.row[1], padded_size, out + key * 2, group_stride);
      InterleavePair(four.row[2], four.row[3], padded_size, out + key * 2 + 4, group_stride);
      continue;
    }
    for (int d = 0; d < padded_size; d += 4) {
      uint32_t* const group = out + (d / 4) * group_stride + key * 4;
      for (int r = 0; r < kGroup; ++r) Store(group + r * 4, four.Load(r, d));
    }
  }
  return odd;
}

void LoadValue(const UnitFormat& format, const Rows& rows, int i, float* out) {
  alignas(16) float row[kMaxHeadSize];
  FloatRow(format, rows, i, row);
  const bool round = format.pairs && format.element == Element::kFloat32;
  for (int d = 0; d < format.head_size; ++d) out[d] = round ? RoundToBFloat16(row[d]) : row[d];
}

void StoreTile(const UnitFormat& format, const float* out, const float* sums, int width,
               float nothing, const Rows& rows) {
  if (format.element == Element::kFloat32) {
    StoreRows<float>(format, out, sums, width, nothing, rows);
  } else {
    StoreRows<uint16_t>(format, out, sums, width, nothing, rows);
  }
}

}  // namespace denoised::kernels
