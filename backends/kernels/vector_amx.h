// Products on AMX tiles, all else as `Vector` has it (Bfloat16 or
// ByteScores<Bfloat16>). Included inside the
// unnamed namespace of the files that use it. `T` holds the tile registers: Start, End, and by
// number Zero, Load(data, stride in bytes), Store, Dot<c, a, b> (c += a b, pairs of bfloat16) and
// DotBytes (a unsigned, b signed, int32 sums). One file has those of the processor; a test has
// emulated ones.
//
// Registers 0..3 are a block of 2 x 2 results, 4 and 5 its rows' operands, 6 and 7 its columns'.
#include "backends/kernels/vector_avx512_bf16.h"
#include "backends/kernels/vector_avx512_vnni.h"

template <class T, class Vector>
struct TileProducts : Vector {
  using F = typename Vector::F;
  using Vector::kLanes;
  static constexpr bool kTiles = true;
  static constexpr int kKeyGroup = kTileKeyGroup;
  static constexpr int kTileUnits = 256;

  struct Session {
    Session() { T::Start(); }
    ~Session() { T::End(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  template <bool kBytes, int kResult, int kRows, int kColumns>
  static void Multiply() {
    if constexpr (kBytes) {
      T::template DotBytes<kResult, kRows, kColumns>();
    } else {
      T::template Dot<kResult, kRows, kColumns>();
    }
  }

  // c[32][16 or 32 of width] += rows columns, over `units`: two rows of tiles of `units`, against
  // [units][width].
  template <bool kBytes>
  static void Accumulate(const uint32_t* rows, const uint32_t* columns, int units, int width,
                         bool two) {
    const int64_t next_row = static_cast<int64_t>(units / 16) * kTileUnits;
    for (int u = 0; u < units; u += 16, rows += kTileUnits, columns += 16 * width) {
      T::template Load<4>(rows, 64);
      T::template Load<5>(rows + next_row, 64);
      T::template Load<6>(columns, width * 4);
      Multiply<kBytes, 0, 4, 6>();
      Multiply<kBytes, 1, 5, 6>();
      if (!two) continue;
      T::template Load<7>(columns + 16, width * 4);
      Multiply<kBytes, 2, 4, 7>();
      Multiply<kBytes, 3, 5, 7>();
    }
  }

  static void StoreResults(float* out, int width, bool two) {
    T::template Store<0>(out, width * 4);
    T::template Store<1>(out + 16 * width, width * 4);
    if (!two) return;
    T::template Store<2>(out + 16, width * 4);
    T::template Store<3>(out + 16 * width + 16, width * 4);
  }

  static void LoadResults(const float* out, int width, bool two) {
    T::template Load<0>(out, width * 4);
    T::template Load<1>(out + 16 * width, width * 4);
    if (!two) return;
    T::template Load<2>(out + 16, width * 4);
    T::template Load<3>(out + 16 * width + 16, width * 4);
  }

  static void ZeroResults() {
    T::template Zero<0>();
    T::template Zero<1>();
    T::template Zero<2>();
    T::template Zero<3>();
  }

  static void ScoreBlock(const TileJob& job, int block, float* scores, int width) {
    const int64_t first = job.head.block_first[block];
    const bool two = width >= 32;
    for (int key = 0; key < job.head.block_length[block]; key += kKeyGroup) {
      for (int column = 0; column < width; column += two ? 32 : 16) {
        ZeroResults();
        Accumulate<Vector::kInt8>(job.head.keys + (first + key) * job.units, job.query + column,
                                  job.units, width, two);
        StoreResults(scores + key * width + column, width, two);
      }
    }
    if constexpr (Vector::kInt8) ScaleSums(job, block, scores, width);
  }

  // int32 sums over bytes to scores that lack the query's scale only, in place.
  static void ScaleSums(const TileJob& job, int block, float* scores, int width) {
    const float* key_scale = job.head.key_scale + job.head.block_first[block];
    for (int key = 0; key < job.head.block_length[block]; ++key) {
      const F scale = Vector::Set1(key_scale[key]);
      for (int q = 0; q < width; q += kLanes) {
        float* at = scores + key * width + q;
        const auto sums =
            _mm512_add_epi32(_mm512_loadu_si512(at), Vector::LoadInts(job.query_offset + q));
        Vector::Store(at, Vector::Mul(Vector::ToFloat(sums), scale));
      }
    }
  }

  static void AddValues(const TileJob& job, const int* pass, int count, const float* shrink,
                        int width) {
    for (int d = 0; d < job.padded_size; ++d) {
      for (int q = 0; q < width; q += kLanes) {
        float* out = job.out + d * width + q;
        Vector::Store(out, Vector::Mul(Vector::Load(out), Vector::Load(shrink + q)));
      }
    }
    const bool two = width >= 32;
    for (int d = 0; d < job.padded_size; d += 32) {
      for (int column = 0; column < width; column += two ? 32 : 16) {
        float* out = job.out + d * width + column;
        const uint32_t* probs = job.probs + column;
        LoadResults(out, width, two);
        for (int i = 0; i < count; ++i) {
          const int units = (job.head.block_length[pass[i]] + kKeyGroup - 1) / kKeyGroup * 16;
          const int64_t first = job.head.block_first[pass[i]] / 2;
          Accumulate<false>(
              job.head.values + first * job.padded_size + static_cast<int64_t>(d) * units, probs,
              units, width, two);
          probs += static_cast<int64_t>(units) * width;
        }
        StoreResults(out, width, two);
      }
    }
  }
};
