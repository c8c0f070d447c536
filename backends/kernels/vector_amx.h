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
  // [units][width]. `meanwhile` is called after every 16 of them: what it does on vectors runs
  // while the tiles, which take 64 cycles for that, are multiplied.
  template <bool kBytes, class Meanwhile>
  static void Accumulate(const uint32_t* rows, const uint32_t* columns, int units, int width,
                         bool two, Meanwhile& meanwhile) {
    const int64_t next_row = static_cast<int64_t>(units / 16) * kTileUnits;
    for (int u = 0; u < units; u += 16, rows += kTileUnits, columns += 16 * width) {
      T::template Load<4>(rows, 64);
      T::template Load<5>(rows + next_row, 64);
      T::template Load<6>(columns, width * 4);
      Multiply<kBytes, 0, 4, 6>();
      Multiply<kBytes, 1, 5, 6>();
      if (two) {
        T::template Load<7>(columns + 16, width * 4);
        Multiply<kBytes, 2, 4, 7>();
        Multiply<kBytes, 3, 5, 7>();
      }
      meanwhile();
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

  static int ColumnsAtOnce(int width) { return width >= 32 ? 32 : 16; }

  template <class Meanwhile>
  static void ScoreBlock(const TileJob& job, int block, float* scores, int width,
                         Meanwhile& meanwhile) {
    const int64_t first = job.head.block_first[block];
    const bool two = width >= 32;
    for (int key = 0; key < job.head.block_length[block]; key += kKeyGroup) {
      for (int column = 0; column < width; column += ColumnsAtOnce(width)) {
        ZeroResults();
        Accumulate<Vector::kInt8>(job.head.keys + (first + key) * job.units, job.query + column,
                                  job.units, width, two, meanwhile);
        StoreResults(scores + key * width + column, width, two);
      }
    }
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

  // A pass, and what becomes of it.
  struct HeldPass : Pass<TileProducts> {
    float* scores;    // [kKeysPerPass][width]
    uint32_t* probs;  // [kKeysPerPass / 2][width]
    alignas(64) float shrink[kMaxWidth];
  };

  // The softmax of a pass, a step at a time: each some 60 cycles on vectors.
  class Softmax {
   public:
    Softmax(const TileJob& job, HeldPass* pass, int width)
        : job_(job), pass_(*pass), width_(width) {
      BeginLanes();
    }
    bool done() const { return lane_ >= width_; }
    int64_t steps() const {
      return int64_t{width_} / kLanes * (pass_.keys / kMostKeys + pass_.keys / kWeightKeys);
    }
    [[gnu::noinline]] void Step() {
      if (key_ < pass_.keys) return FindMostOfNext();
      WeighNext();
    }

   private:
    static constexpr int kMostKeys = 32, kWeightKeys = 8;
    static_assert(kKeyGroup % kMostKeys == 0 && kKeyGroup % kWeightKeys == 0);

    void BeginLanes() {
      key_ = weighed_ = 0;
      before_ = top_ = top2_ = Vector::Load(job_.max + lane_);
    }

    const float* ScoresFrom(int key) const {
      return pass_.scores + static_cast<int64_t>(key) * width_ + lane_;
    }

    void FindMostOfNext() {
      FindMost<TileProducts>(ScoresFrom(key_), kMostKeys, width_, &top_, &top2_);
      key_ += kMostKeys;
      if (key_ == pass_.keys) FindShrink();
    }

    void FindShrink() {
      top_ = Vector::Max(top_, top2_);
      const F finite = FiniteMax<TileProducts>(top_), scale = ScaleOf<TileProducts>(job_, lane_);
      const F shrink = ShrinkOf<TileProducts>(before_, finite, scale);
      Vector::Store(pass_.shrink + lane_, shrink);
      weighing_ = {{finite}, {scale}, {Vector::Mul(Vector::Load(job_.sums + lane_), shrink)}};
    }

    void WeighNext() {
      uint32_t* const probs = pass_.probs + static_cast<int64_t>(weighed_ / 2) * width_ + lane_;
      Weigh(ScoresFrom(weighed_), kWeightKeys, width_, &weighing_, probs);
      weighed_ += kWeightKeys;
      if (weighed_ < pass_.keys) return;
      Vector::Store(job_.max + lane_, top_);
      Vector::Store(job_.sums + lane_, weighing_.total[0]);
      lane_ += kLanes;
      if (!done()) BeginLanes();
    }

    const TileJob& job_;
    HeldPass& pass_;
    const int width_;
    int lane_ = 0, key_, weighed_;
    F before_, top_, top2_;
    Weighing<TileProducts, 1> weighing_;
  };

  // Spreads the steps of a softmax evenly over so many calls.
  class Spread {
   public:
    Spread(Softmax* softmax, int64_t calls)
        : softmax_(*softmax), steps_(softmax->steps()), calls_(calls) {}
    void operator()() {
      for (credit_ += steps_; credit_ >= calls_ && !softmax_.done(); credit_ -= calls_) {
        softmax_.Step();
      }
    }

   private:
    Softmax& softmax_;
    const int64_t steps_, calls_;
    int64_t credit_ = 0;
  };
  struct Nothing {
    void operator()() const {}
  };

  // How often Score and AddValues call their `meanwhile`.
  static int64_t CallsOfScore(const TileJob& job, const HeldPass& pass, int width) {
    return int64_t{pass.keys} / kKeyGroup * (width / ColumnsAtOnce(width)) * (job.units / 16);
  }
  static int64_t CallsOfValues(const TileJob& job, const HeldPass& pass, int width) {
    return int64_t{job.padded_size} / 32 * (width / ColumnsAtOnce(width)) * (pass.keys / kKeyGroup);
  }

  template <class Meanwhile>
  static void Score(const TileJob& job, const HeldPass& pass, int width, Meanwhile& meanwhile) {
    float* scores = pass.scores;
    for (int i = 0; i < pass.count; ++i) {
      ScoreBlock(job, pass.blocks[i], scores, width, meanwhile);
      scores += Padded<TileProducts>(job.head.block_length[pass.blocks[i]]) * width;
    }
  }

  // What the tiles gave, ready for the softmax.
  static void EndScores(const TileJob& job, const HeldPass& pass, int width) {
    TilesAreInMemory();
    float* scores = pass.scores;
    for (int i = 0; i < pass.count; ++i) {
      const int block = pass.blocks[i];
      if constexpr (Vector::kInt8) ScaleSums(job, block, scores, width);
      HideScores<TileProducts>(job, pass.first + i, block, scores, width);
      scores += Padded<TileProducts>(job.head.block_length[block]) * width;
    }
  }

  // The compiler does not know what tile instructions read and write.
  static void TilesAreInMemory() { asm volatile("" ::: "memory"); }

  // out *= shrink, which is 1 once the largest scores have been met.
  static void Shrink(const TileJob& job, const float* shrink, int width) {
    bool any = false;
    for (int q = 0; q < width; q += kLanes) {
      any |= !Vector::AllEqual(Vector::Load(shrink + q), Vector::Set1(1));
    }
    if (!any) return;
    for (int d = 0; d < job.padded_size; ++d) {
      for (int q = 0; q < width; q += kLanes) {
        float* const out = job.out + d * width + q;
        Vector::Store(out, Vector::Mul(Vector::Load(out), Vector::Load(shrink + q)));
      }
    }
  }

  // out[padded_size][width] = out * shrink + values^T probs.
  template <class Meanwhile>
  static void AddValues(const TileJob& job, const HeldPass& pass, int width, Meanwhile& meanwhile) {
    Shrink(job, pass.shrink, width);
    TilesAreInMemory();
    const bool two = width >= 32;
    for (int d = 0; d < job.padded_size; d += 32) {
      for (int column = 0; column < width; column += ColumnsAtOnce(width)) {
        float* const out = job.out + d * width + column;
        const uint32_t* probs = pass.probs + column;
        LoadResults(out, width, two);
        for (int i = 0; i < pass.count; ++i) {
          const int block = pass.blocks[i];
          const int units = Padded<TileProducts>(job.head.block_length[block]) / 2;
          const int64_t first = job.head.block_first[block] / 2;
          Accumulate<false>(
              job.head.values + first * job.padded_size + static_cast<int64_t>(d) * units, probs,
              units, width, two, meanwhile);
          probs += static_cast<int64_t>(units) * width;
        }
        StoreResults(out, width, two);
      }
    }
    TilesAreInMemory();
  }

  // Tiles and vectors are two units of the processor: while the scores of one pass become weights,
  // those of the next one are computed and the values of the last one added.
  static void RunJob(const TileJob& job, int width) {
    const Session session;
    if (!job.resume) Begin<TileProducts>(job, width);
    HeldPass passes[3];
    int next = 0;  // of the job's blocks
    const auto take = [&](int64_t i) {
      HeldPass& pass = passes[i % 3];
      pass.scores = job.scores + i % 2 * kKeysPerPass * width;
      pass.probs = job.probs + i % 2 * (kKeysPerPass / 2) * width;
      if (!TakePass<TileProducts>(job, next, &pass)) return false;
      next += pass.count;
      return true;
    };
    if (!take(0)) return;
    Nothing nothing;
    Score(job, passes[0], width, nothing);
    EndScores(job, passes[0], width);
    const HeldPass* last = nullptr;
    bool more = true;
    for (int64_t i = 0; more; ++i) {
      HeldPass& now = passes[i % 3];
      const HeldPass& following = passes[(i + 1) % 3];
      more = take(i + 1);
      Softmax softmax(job, &now, width);
      Spread spread(&softmax, (more ? CallsOfScore(job, following, width) : 0) +
                                  (last != nullptr ? CallsOfValues(job, *last, width) : 0));
      if (more) Score(job, following, width, spread);
      if (last != nullptr) AddValues(job, *last, width, spread);
      while (!softmax.done()) softmax.Step();
      if (more) EndScores(job, following, width);
      last = &now;
    }
    AddValues(job, *last, width, nothing);
  }
};
