// The GEMM's tile on AMX, over tile registers `T` (see vector_amx.h): 0..3 are 2 x 2 results of
// 16 x 16, 4 and 5 their rows' operands, 6 and 7 their columns'. Included inside the unnamed
// namespace of the files that use it.
//
// An output element is one chain of TDPBF16PS, or TDPBUSD, over its own row and column: its bits
// depend neither on the tile's height nor on its place.

template <class T, bool kBytes, int kResult, int kRows, int kColumns>
inline void MultiplyTiles() {
  if constexpr (kBytes) {
    T::template DotBytes<kResult, kRows, kColumns>();
  } else {
    T::template Dot<kResult, kRows, kColumns>();
  }
}

// Registers 0..3 = rows panel, of which the second 16 rows only where `two`.
template <class T, bool kBytes>
inline void AccumulateTiles(const GemmTile& tile, bool two) {
  T::template Zero<0>();
  T::template Zero<1>();
  T::template Zero<2>();
  T::template Zero<3>();
  const uint32_t* rows = tile.rows;
  const uint32_t* panel = static_cast<const uint32_t*>(tile.panel);
  const int64_t next = static_cast<int64_t>(tile.height) * kAmxUnits;
  for (int64_t u = 0; u < tile.units; u += kAmxUnits, rows += next) {
    T::template Load<4>(rows, kAmxUnits * 4);
    T::template Load<6>(panel, kPanelColumns * 4);
    T::template Load<7>(panel + 16, kPanelColumns * 4);
    MultiplyTiles<T, kBytes, 0, 4, 6>();
    MultiplyTiles<T, kBytes, 2, 4, 7>();
    panel += kAmxUnits * kPanelColumns;
    if (!two) continue;
    T::template Load<5>(rows + 16 * kAmxUnits, kAmxUnits * 4);
    MultiplyTiles<T, kBytes, 1, 5, 6>();
    MultiplyTiles<T, kBytes, 3, 5, 7>();
  }
}

template <class T>
inline void StoreTiles(float* out, int64_t stride, bool two) {
  T::template Store<0>(out, stride * 4);
  T::template Store<2>(out + 16, stride * 4);
  if (!two) return;
  T::template Store<1>(out + 16 * stride, stride * 4);
  T::template Store<3>(out + 16 * stride + 16, stride * 4);
}

template <class T, bool kBytes>
inline void RunAmxGemmTile(const GemmTile& tile) {
  const bool two = tile.height > 16;
  AccumulateTiles<T, kBytes>(tile, two);
  if (tile.first) return StoreTiles<T>(tile.sums, tile.sum_stride, two);
  alignas(64) float piece[kAmxTileRows * kPanelColumns];
  StoreTiles<T>(piece, kPanelColumns, two);
  for (int r = 0; r < tile.height; ++r) {
    for (int c = 0; c < kPanelColumns; c += 16) {
      float* sums = tile.sums + r * tile.sum_stride + c;
      const float* add = piece + r * kPanelColumns + c;
      if constexpr (kBytes) {
        const __m512i sum = _mm512_loadu_si512(sums);
        _mm512_storeu_si512(sums, _mm512_add_epi32(sum, _mm512_loadu_si512(add)));
      } else {
        _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(add)));
      }
    }
  }
}
