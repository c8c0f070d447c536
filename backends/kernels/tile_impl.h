// The tile kernel, once, over a vector type `S`. Each instruction set's file defines S in its own
// unnamed namespace and includes this there, so that no two files share a symbol.
//
// S: F (vector), kLanes, kColumns (vectors of the register tile's width; kScoreColumns of that of
// scores), kPairs (units are pairs of bfloat16), Zero, Set1, Load, Store, Max, Sub, Mul, Add, Fma,
// Exp2, Exp2Float, MulAdd(acc, unit, unit), BroadcastUnit, LoadUnits, StorePair(p0, p1, out),
// HideRows(scores, mask), kInt8; with kInt8 also I (vector of int32), LoadInts, DotUnits(acc, query
// unit, key unit), ToFloat; kTiles, kKeyGroup (what blocks are padded to); with kTiles it runs a
// job in its own way, RunJob.

// Runs run(columns, lane) over the lanes of a tile: kV vectors at a time, and what is left in
// fewer. Four are two and two, for four sums alone do not fill the multipliers.
template <class S, int kV, class Run>
inline void ForColumns(int width, const Run& run, int lane = 0) {
  constexpr int kStep = kV * S::kLanes;
  for (; lane + kStep <= width; lane += kStep) {
    if (kV == 3 && width - lane == 4 * S::kLanes) break;
    run(std::integral_constant<int, kV>(), lane);
  }
  if constexpr (kV > 1) {
    if (lane < width) ForColumns<S, kV - 1>(width, run, lane);
  }
}

// C[4][kV vectors] (+)= a^T b over `units`: a is [units][4] broadcast, b is [units][width].
template <class S, int kV>
inline void MultiplyUnits(const uint32_t* a, const uint32_t* b, int units, int width,
                          typename S::F (&acc)[kGroup][kV]) {
  for (int u = 0; u < units; ++u, a += kGroup, b += width) {
    typename S::F column[kV];
    for (int v = 0; v < kV; ++v) column[v] = S::LoadUnits(b + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) {
      const typename S::F unit = S::BroadcastUnit(a + r);
      for (int v = 0; v < kV; ++v) acc[r][v] = S::MulAdd(acc[r][v], column[v], unit);
    }
  }
}

// Four keys against the columns: int8 dot products, brought back to the size of k. That of q goes
// into the softmax scale.
template <class S, int kV>
inline void ScoreFourInt8(const TileJob& job, const uint32_t* keys, const float* key_scale,
                          int column, float* scores, int width) {
  typename S::I acc[kGroup][kV];
  for (int v = 0; v < kV; ++v) {
    const typename S::I offset = S::LoadInts(job.query_offset + column + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) acc[r][v] = offset;
  }
  const uint32_t* query = job.query + column;
  for (int u = 0; u < job.units; ++u, keys += kGroup, query += width) {
    typename S::F unit[kV];
    for (int v = 0; v < kV; ++v) unit[v] = S::LoadUnits(query + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) {
      const typename S::F key = S::BroadcastUnit(keys + r);
      for (int v = 0; v < kV; ++v) acc[r][v] = S::DotUnits(acc[r][v], unit[v], key);
    }
  }
  for (int r = 0; r < kGroup; ++r) {
    const typename S::F scale = S::Set1(key_scale[r]);
    for (int v = 0; v < kV; ++v) {
      S::Store(scores + r * width + column + v * S::kLanes, S::Mul(S::ToFloat(acc[r][v]), scale));
    }
  }
}

// Scores of one key block into scores[length4][width].
template <class S, int kWidest>
inline void ScoreBlock(const TileJob& job, int block, float* scores, int width) {
  const int first = job.head.block_first[block], length = job.head.block_length[block];
  for (int key = 0; key < length; key += kGroup) {
    const uint32_t* keys = job.head.keys + static_cast<int64_t>(first + key) * job.units;
    ForColumns<S, kWidest>(width, [&](auto columns, int column) {
      constexpr int kV = columns;
      if constexpr (S::kInt8) {
        ScoreFourInt8<S, kV>(job, keys, job.head.key_scale + first + key, column,
                             scores + key * width, width);
      } else {
        typename S::F acc[kGroup][kV];
        for (auto& row : acc) {
          for (auto& x : row) x = S::Zero();
        }
        MultiplyUnits<S, kV>(keys, job.query + column, job.units, width, acc);
        for (int r = 0; r < kGroup; ++r) {
          for (int v = 0; v < kV; ++v) {
            S::Store(scores + (key + r) * width + column + v * S::kLanes, acc[r][v]);
          }
        }
      }
    });
  }
}

template <class S>
inline int Padded(int length) {
  return (length + S::kKeyGroup - 1) / S::kKeyGroup * S::kKeyGroup;
}

// Padding keys, keys hidden from single rows, and whatever job.edit does.
template <class S>
inline void HideScores(const TileJob& job, int entry, int block, float* scores, int width) {
  const int length = job.head.block_length[block];
  const int padded = Padded<S>(length);
  const typename S::F hidden = S::Set1(-__builtin_inff());
  for (int key = length; key < padded; ++key) {
    for (int q = 0; q < width; q += S::kLanes) S::Store(scores + key * width + q, hidden);
  }
  if (job.row_masks != nullptr && job.row_masks[entry] != ~uint64_t{0}) {
    for (int key = 0; key < length; ++key) {
      for (int q = 0; q < width; q += S::kLanes) {
        S::HideRows(scores + key * width + q, job.row_masks[entry] >> q);
      }
    }
  }
  if (job.edit != nullptr) job.edit(job.edit_context, block, scores, width);
}

// Where a row has seen nothing yet its maximum is -inf; any finite stand-in keeps exp2 at 0. A
// score that is not a number may get lost in a maximum, but its own weight is none either, and with
// it the row's sum; so is that of +inf, which is inf - inf.
template <class S>
inline typename S::F FiniteMax(typename S::F max) {
  return S::Max(max, S::Set1(-3e38f));
}

// The largest of the scores of `keys` keys, an even number, in two chains.
template <class S>
inline void FindMost(const float* scores, int keys, int64_t width, typename S::F* top,
                     typename S::F* top2) {
  typename S::F most = *top, most2 = *top2;
  for (int key = 0; key < keys; key += 2) {
    most = S::Max(most, S::Load(scores + key * width));
    most2 = S::Max(most2, S::Load(scores + (key + 1) * width));
  }
  *top = most;
  *top2 = most2;
}

// The scores of `keys` keys, an even number, become probabilities, which are added to the totals of
// even and odd ones.
template <class S>
inline void Weigh(const float* scores, int keys, int64_t width, typename S::F finite,
                  typename S::F scale, typename S::F* total, typename S::F* total2,
                  uint32_t* probs) {
  using F = typename S::F;
  F sum = *total, sum2 = *total2;
  for (int key = 0; key < keys; key += 2) {
    const F p0 = S::Exp2(S::Mul(S::Sub(S::Load(scores + key * width), finite), scale));
    const F p1 = S::Exp2(S::Mul(S::Sub(S::Load(scores + (key + 1) * width), finite), scale));
    sum = S::Add(sum, p0);
    sum2 = S::Add(sum2, p1);
    S::StorePair(p0, p1, probs, static_cast<int>(width));
    probs += (S::kPairs ? 1 : 2) * width;
  }
  *total = sum;
  *total2 = sum2;
}

// What the scores of kLanes queries, from `lane` on, are multiplied by.
template <class S>
inline typename S::F ScaleOf(const TileJob& job, int lane) {
  const typename S::F scale = S::Set1(job.scale_log2);
  if constexpr (S::kInt8) return S::Mul(scale, S::Load(job.query_scale + lane));
  return scale;
}

// The factor by which what was summed before shrinks. It is applied once a pass to all passes
// before: where the largest score stays it must be 1 and no 0.9999, or early keys weigh less than
// late ones, the more the longer the row is.
template <class S>
inline typename S::F ShrinkOf(typename S::F before, typename S::F finite, typename S::F scale) {
  return S::Exp2Float(S::Mul(S::Sub(before, finite), scale));
}

// Scores of one pass become probabilities; updates the running maximum and sum of kLanes queries
// and gives the factor by which what was summed before shrinks.
template <class S>
inline typename S::F SoftmaxLanes(const TileJob& job, int lane, int keys, int width) {
  using F = typename S::F;
  const float* const scores = job.scores + lane;
  const F before = S::Load(job.max + lane), scale = ScaleOf<S>(job, lane);
  F top = before, top2 = before;
  FindMost<S>(scores, keys, width, &top, &top2);
  top = S::Max(top, top2);
  const F finite = FiniteMax<S>(top);
  const F shrink = ShrinkOf<S>(before, finite, scale);
  F total = S::Mul(S::Load(job.sums + lane), shrink), total2 = S::Zero();
  Weigh<S>(scores, keys, width, finite, scale, &total, &total2, job.probs + lane);
  S::Store(job.max + lane, top);
  S::Store(job.sums + lane, S::Add(total, total2));
  return shrink;
}

// Blocks whose scores are held at once.
template <class S>
struct Pass {
  int first = 0;  // among the job's blocks
  int count = 0, keys = 0;
  int blocks[kKeysPerPass / S::kKeyGroup];
};

// Those from `first` on that fit; false where there is none.
template <class S>
inline bool TakePass(const TileJob& job, int first, Pass<S>* pass) {
  pass->first = first;
  pass->count = pass->keys = 0;
  for (int next = first; next < job.num_blocks; ++next) {
    const int block = job.blocks != nullptr ? job.blocks[next] : next;
    const int padded = Padded<S>(job.head.block_length[block]);
    if (pass->keys + padded > kKeysPerPass) break;
    pass->blocks[pass->count++] = block;
    pass->keys += padded;
  }
  return pass->count > 0;
}

// out[padded_size][width] = out * shrink + values^T probs, over the blocks of one pass.
template <class S, int kWidest>
inline void AddValues(const TileJob& job, const Pass<S>& pass, const float* shrink, int width) {
  constexpr int kKeysPerUnit = S::kPairs ? 2 : 1;
  for (int d = 0; d < job.padded_size; d += kGroup) {
    ForColumns<S, kWidest>(width, [&](auto columns, int column) {
      constexpr int kV = columns;
      typename S::F acc[kGroup][kV];
      for (int v = 0; v < kV; ++v) {
        const typename S::F factor = S::Load(shrink + column + v * S::kLanes);
        for (int r = 0; r < kGroup; ++r) {
          acc[r][v] = S::Mul(S::Load(job.out + (d + r) * width + column + v * S::kLanes), factor);
        }
      }
      const uint32_t* probs = job.probs + column;
      for (int i = 0; i < pass.count; ++i) {
        const int block = pass.blocks[i];
        const int padded = Padded<S>(job.head.block_length[block]);
        const int units = padded / kKeysPerUnit;
        const int64_t first = static_cast<int64_t>(job.head.block_first[block]) / kKeysPerUnit;
        const uint32_t* values =
            job.head.values + first * job.padded_size + static_cast<int64_t>(d) * units;
        MultiplyUnits<S, kV>(values, probs, units, width, acc);
        probs += static_cast<int64_t>(units) * width;
      }
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < kV; ++v) {
          S::Store(job.out + (d + r) * width + column + v * S::kLanes, acc[r][v]);
        }
      }
    });
  }
}

// Queries that have attended nothing yet.
template <class S>
inline void Begin(const TileJob& job, int width) {
  for (int q = 0; q < width; q += S::kLanes) {
    S::Store(job.max + q, S::Set1(-__builtin_inff()));
    S::Store(job.sums + q, S::Zero());
  }
  for (int i = 0; i < job.padded_size * width; i += S::kLanes) S::Store(job.out + i, S::Zero());
}

template <class S>
inline void RunTile(const TileJob& job, int width) {
  if constexpr (S::kTiles) return S::RunJob(job, width);
  alignas(64) float shrink[kMaxWidth];
  if (!job.resume) Begin<S>(job, width);

  Pass<S> pass;
  for (int next = 0; TakePass<S>(job, next, &pass); next += pass.count) {
    float* scores = job.scores;
    for (int i = 0; i < pass.count; ++i) {
      const int block = pass.blocks[i];
      ScoreBlock<S, S::kScoreColumns>(job, block, scores, width);
      HideScores<S>(job, next + i, block, scores, width);
      scores += Padded<S>(job.head.block_length[block]) * width;
    }
    for (int q = 0; q < width; q += S::kLanes) {
      S::Store(shrink + q, SoftmaxLanes<S>(job, q, pass.keys, width));
    }
    AddValues<S, S::kColumns>(job, pass, shrink, width);
  }
}
