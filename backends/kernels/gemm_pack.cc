#include "backends/kernels/gemm_pack.h"

#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <type_traits>

#include "backends/kernels/int8_rule.h"
#include "backends/kernels/rounding.h"
#include "backends/kernels/transpose.h"

namespace denoised::kernels {
namespace {

constexpr int64_t kLineBytes = 64;
// Rows that are packed together are a tile's or a panel's columns.
static_assert(kPanelColumns <= kMostTileRows);

template <typename T>
const T* RowOf(const RowSource& source, int64_t row) {
  return static_cast<const T*>(source.data) + row * source.stride;
}

// ---- what a row's units are: one by one, and eight that are whole ------------------------------

template <typename T>
struct FloatUnits {
  static constexpr int kNumbers = 1;
  const T* row;
  uint32_t Unit(int64_t u, int64_t /*k*/) const {
    const float x = LoadOne(row + u);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
  }
  __m256 Eight(int64_t u) const { return LoadEight(row + u); }
};

struct PairUnits {
  static constexpr int kNumbers = 2;
  const uint16_t* row;
  uint32_t Unit(int64_t u, int64_t k) const {
    const uint32_t second = 2 * u + 1 < k ? row[2 * u + 1] : 0;
    return row[2 * u] | second << 16;
  }
  __m256 Eight(int64_t u) const {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 2 * u));
  }
};

// In units of the row's scale. What is not a number becomes some integer; the scale shows it.
template <typename T>
struct IntegerUnits {
  const T* row;
  float inverse;  // 1 / scale

  int Integer(int64_t i, int64_t k) const {
    return i < k ? _mm_cvtss_si32(_mm_set_ss(LoadOne(row + i) * inverse)) : 0;
  }
  __m256i Integers(int64_t i) const {
    return _mm256_cvtps_epi32(_mm256_mul_ps(LoadEight(row + i), _mm256_set1_ps(inverse)));
  }
  // Sixteen words, whose middle eight have changed places.
  __m256i Words(int64_t i) const { return _mm256_packs_epi32(Integers(i), Integers(i + 8)); }
};

template <typename T>
struct WordUnits : IntegerUnits<T> {
  static constexpr int kNumbers = 2;
  uint32_t Unit(int64_t u, int64_t k) const {
    return (this->Integer(2 * u, k) & 0xffff) | static_cast<uint32_t>(this->Integer(2 * u + 1, k))
                                                    << 16;
  }
  __m256 Eight(int64_t u) const {
    return _mm256_castsi256_ps(_mm256_permute4x64_epi64(this->Words(2 * u), 0xd8));
  }
};

// kFlip: plus 128.
template <typename T, uint8_t kFlip>
struct ByteUnits : IntegerUnits<T> {
  static constexpr int kNumbers = 4;
  uint32_t Unit(int64_t u, int64_t k) const {
    uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      unit |= static_cast<uint32_t>((this->Integer(4 * u + i, k) & 0xff) ^ kFlip) << 8 * i;
    }
    return unit;
  }
  __m256 Eight(int64_t u) const {
    const __m256i bytes = _mm256_packs_epi16(this->Words(4 * u), this->Words(4 * u + 16));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(kFlip));
    return _mm256_castsi256_ps(_mm256_xor_si256(_mm256_permutevar8x32_epi32(bytes, order), flip));
  }
};

// ---- where units go ----------------------------------------------------------------------------

// To [units][height].
struct Interleaved {
  uint32_t* out;
  int height;
  void StoreOne(int64_t u, int r, uint32_t unit) const { out[u * height + r] = unit; }
  // Eight units of four rows.
  void StoreRows(int64_t u, int r, __m256 (&x)[4]) const {
    TransposeFour(x);
    float* to = reinterpret_cast<float*>(out + u * height + r);
    for (int i = 0; i < 4; ++i, to += height) {
      _mm_storeu_ps(to, _mm256_castps256_ps128(x[i]));
      _mm_storeu_ps(to + 4 * height, _mm256_extractf128_ps(x[i], 1));
    }
  }
};

// To [units / 16][height][16].
struct InTiles {
  uint32_t* out;
  int height;
  uint32_t* At(int64_t u, int r) const {
    return out + (u / kAmxUnits * height + r) * kAmxUnits + u % kAmxUnits;
  }
  void StoreOne(int64_t u, int r, uint32_t unit) const { *At(u, r) = unit; }
  void StoreRows(int64_t u, int r, const __m256 (&x)[4]) const {
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(reinterpret_cast<float*>(At(u, r + i)), x[i]);
  }
};

// `whole` units of a row, in eights, can be read eight at once; from `filled` on they are zeros.
struct Extent {
  int64_t whole, filled, units;
};

Extent ExtentOf(const GemmKernel& kernel, int64_t k) {
  const int64_t per = kernel.numbers_a_unit();
  return {k / per / 8 * 8, (k + per - 1) / per, kernel.Units(k)};
}

// ---- int8 --------------------------------------------------------------------------------------

// The largest magnitude of a row. As whole numbers, of which those of infinity and NaN are larger
// than all others.
template <typename T>
float MostOf(const T* row, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const __m256i x = _mm256_castps_si256(LoadEight(row + k));
    most = _mm256_max_epi32(most, _mm256_and_si256(x, magnitude));
  }
  alignas(32) float lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  float top = 0;
  for (const float lane : lanes) top = Int8Larger(lane, top);
  for (; k < count; ++k) top = Int8Larger(std::fabs(LoadOne(row + k)), top);
  return top;
}

float MostOf(const RowSource& source, int64_t row) {
  return source.element == Element::kFloat32 ? MostOf(RowOf<float>(source, row), source.k)
                                             : MostOf(RowOf<uint16_t>(source, row), source.k);
}

// A row whose bytes would be worth a denormal number counts as zeros: so does one past the last.
void ScaleRows(const RowSource& source, int64_t first, int height, float* scales, float* inverses) {
  for (int r = 0; r < height; ++r) {
    scales[r] = first + r < source.rows ? Int8Scale(MostOf(source, first + r)) : 1;
    inverses[r] = scales[r] >= FLT_MIN ? 1 / scales[r] : 0;
    if (scales[r] < FLT_MIN) scales[r] = 1;
  }
}

// -128 times the sum of each column's bytes.
void SumColumns(const uint32_t* units, int64_t count, int32_t* offsets) {
  std::fill_n(offsets, kPanelColumns, 0);
  for (int64_t u = 0; u < count; ++u) {
    for (int c = 0; c < kPanelColumns; c += 8) {
      __m256i* sum = reinterpret_cast<__m256i*>(offsets + c);
      const __m256i bytes =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(units + u * kPanelColumns + c));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
      const __m256i four = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-128));
      _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), four));
    }
  }
}

// Units of one word instead of two halves, or two bytes instead of two words: eight at a time.
void NarrowUnits(const uint32_t* units, int64_t count, bool integers, char* out) {
  for (int64_t i = 0; i < count; i += 8) {
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(units + i));
    x = integers ? _mm256_packs_epi16(x, x)
                 : _mm256_packus_epi32(_mm256_srli_epi32(x, 16), _mm256_srli_epi32(x, 16));
    x = _mm256_permute4x64_epi64(x, 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_castsi256_si128(x));
  }
}

// kNumbers of T a unit.
template <typename T, int kNumbers>
void UnpackColumns(const char* panel, int64_t columns, int64_t k, char* out) {
  T* to = reinterpret_cast<T*>(out);
  for (int64_t c = 0; c < columns; ++c, to += k) {
    const T* from = reinterpret_cast<const T*>(panel) + c * kNumbers;
    for (int64_t i = 0; i < k; ++i) {
      to[i] = from[i / kNumbers * kNumbers * kPanelColumns + i % kNumbers];
    }
  }
}

// The rows of a tile from `first` on, as the units that unit(row of T, r) makes of the r-th: a line
// of memory of all rows after the other, so that what is written is near until it is complete;
// meanwhile the next ones are brought near. Rows that are not there are zeros.
template <typename T, class Unit, class Place>
void PackRowsAs(const GemmKernel& kernel, const RowSource& source, int64_t first, const Place place,
                const Unit& unit) {
  using Units = decltype(unit(static_cast<const T*>(nullptr), 0));
  constexpr int64_t kUnitBytes = sizeof(T) * Units::kNumbers;
  constexpr int64_t kStep = std::max<int64_t>(8, kLineBytes / kUnitBytes);
  const Extent extent = ExtentOf(kernel, source.k);
  const int64_t k = source.k;
  const int there = static_cast<int>(std::clamp<int64_t>(source.rows - first, 0, place.height));
  Units rows[kMostTileRows];
  for (int r = 0; r < there; ++r) rows[r] = unit(RowOf<T>(source, first + r), r);
  for (int64_t u = 0; u < extent.whole; u += kStep) {
    const int64_t end = std::min(u + kStep, extent.whole);
    for (int r = 0; end < extent.whole && r < there; ++r) {
      const char* const next = reinterpret_cast<const char*>(rows[r].row + end * Units::kNumbers);
      for (int64_t at = 0; at < kStep * kUnitBytes; at += kLineBytes) __builtin_prefetch(next + at);
    }
    for (int r = 0; r < place.height; r += 4) {
      for (int64_t v = u; v < end; v += 8) {
        __m256 x[4];
        if (r + 4 <= there) {
          for (int i = 0; i < 4; ++i) x[i] = rows[r + i].Eight(v);
        } else {
          for (int i = 0; i < 4; ++i) {
            x[i] = r + i < there ? rows[r + i].Eight(v) : _mm256_setzero_ps();
          }
        }
        place.StoreRows(v, r, x);
      }
    }
  }
  for (int64_t u = extent.whole; u < extent.units; ++u) {
    for (int r = 0; r < place.height; ++r) {
      place.StoreOne(u, r, r < there && u < extent.filled ? rows[r].Unit(u, k) : 0);
    }
  }
}

template <typename T, class Place>
void PackAsUnits(const GemmKernel& kernel, const RowSource& source, int64_t first,
                 const float* inverses, bool signed_bytes, const Place& place) {
  const auto pack = [&](const auto& unit) { PackRowsAs<T>(kernel, source, first, place, unit); };
  switch (kernel.units) {
    case GemmUnits::kFloats:
      return pack([](const T* row, int) { return FloatUnits<T>{row}; });
    case GemmUnits::kPairs:
      if constexpr (std::is_same_v<T, uint16_t>) {
        return pack([](const T* row, int) { return PairUnits{row}; });
      }
      __builtin_unreachable();  // float32 has no pairs: `Takes`
    case GemmUnits::kWords:
      return pack([&](const T* row, int r) { return WordUnits<T>{{row, inverses[r]}}; });
    case GemmUnits::kBytes:
      if (signed_bytes) {
        return pack([&](const T* row, int r) { return ByteUnits<T, 0>{{row, inverses[r]}}; });
      }
      return pack([&](const T* row, int r) { return ByteUnits<T, 0x80>{{row, inverses[r]}}; });
  }
}

template <class Place>
void PackAs(const GemmKernel& kernel, const RowSource& source, int64_t first, const float* inverses,
            bool signed_bytes, const Place& place) {
  if (source.element == Element::kFloat32) {
    PackAsUnits<float>(kernel, source, first, inverses, signed_bytes, place);
  } else {
    PackAsUnits<uint16_t>(kernel, source, first, inverses, signed_bytes, place);
  }
}

}  // namespace

void PackTileRows(const GemmKernel& kernel, const RowSource& source, int64_t first, int height,
                  uint32_t* out, float* scales) {
  float inverses[kMostTileRows] = {};
  if (kernel.int8()) ScaleRows(source, first, height, scales, inverses);
  if (kernel.amx) return PackAs(kernel, source, first, inverses, false, InTiles{out, height});
  PackAs(kernel, source, first, inverses, false, Interleaved{out, height});
}

void PackPanel(const GemmKernel& kernel, const RowSource& weight, int64_t first, char* out,
               float* scales, int32_t* offsets) {
  float inverses[kPanelColumns] = {};
  if (kernel.int8()) {
    ScaleRows(weight, first, kPanelColumns, scales, inverses);
    std::fill_n(offsets, kPanelColumns, 0);
  }
  const int64_t count = kernel.Units(weight.k) * kPanelColumns;
  const bool narrow = kernel.PanelUnitBytes(weight.element) == 2;
  Buffer<uint32_t> wide;
  if (narrow) wide = Allocate<uint32_t>(count);
  uint32_t* units = narrow ? wide.get() : reinterpret_cast<uint32_t*>(out);
  PackAs(kernel, weight, first, inverses, true, Interleaved{units, kPanelColumns});
  if (narrow) NarrowUnits(units, count, kernel.int8(), out);
  if (kernel.units == GemmUnits::kBytes) SumColumns(units, count / kPanelColumns, offsets);
}

void UnpackPanel(const GemmKernel& kernel, Element element, const char* panel, int64_t columns,
                 int64_t k, char* out) {
  if (element == Element::kFloat32) {
    UnpackColumns<float, 1>(panel, columns, k, out);
  } else if (kernel.units == GemmUnits::kPairs) {
    UnpackColumns<uint16_t, 2>(panel, columns, k, out);
  } else {
    UnpackColumns<uint16_t, 1>(panel, columns, k, out);
  }
}

void ScaleSums(float* sums, float row_scale, const float* scales, const int32_t* offsets,
               int64_t columns) {
  const __m256 row = _mm256_set1_ps(row_scale);
  for (int64_t n = 0; n < columns; n += 8) {
    const __m256i lacking = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + n));
    const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + n));
    const __m256 whole = _mm256_cvtepi32_ps(_mm256_add_epi32(sum, lacking));
    // The scales first: neither a large row's nor a large column's overflows with the sum alone.
    _mm256_storeu_ps(sums + n,
                     _mm256_mul_ps(whole, _mm256_mul_ps(row, _mm256_loadu_ps(scales + n))));
  }
}

}  // namespace denoised::kernels
