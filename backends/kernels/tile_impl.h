// The tile kernel, once, over a vector type `S`. Each instruction set's file defines S in its own
// unnamed namespace and includes this there, so that no two files share a symbol.
//
// S: F (vector), kLanes, kColumns (vectors of the register tile's width), kPairs (units are pairs
// of bfloat16), Zero, Set1, Load, Store, Max, Sub, Mul, Add, Fma, Exp2, MulAdd(acc, unit, unit),
// BroadcastUnit, LoadUnits, StorePair(p0, p1, out), HideRows(scores, mask), kInt8; with kInt8 also
// I (vector of int32), LoadInts, DotUnits(acc, query unit, key unit), ToFloat; kTiles, kKeyGroup
// (what blocks are padded to); with kTiles it runs a job in its own way, RunJob.

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
template <class S, int kV>
inline void ScoreBlock(const TileJob& job, int block, float* scores, int width) {
  const int first = job.head.block_first[block], length = job.head.block_length[block];
  for (int key = 0; key < length; key += kGroup) {
    const uint32_t* keys = job.head.keys + static_cast<int64_t>(first + key) * job.units;
    for (int column = 0; column < width; column += kV * S::kLanes) {
      if constexpr (S::kInt8) {
        ScoreFourInt8<S, kV>(job, keys, job.head.key_scale + first + key, column,
                             scores + key * width, width);
        continue;
      }
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

// Scores of one pass become probabilities; updates the running maximum and sum of kLanes queries
// and gives the factor by which what was summed before shrinks.
template <class S>
inline typename S::F SoftmaxLanes(const float* scores, int keys, int width, typename S::F scale,
                                  float* max, float* sum, uint32_t* probs) {
  using F = typename S::F;
  const F before = S::Load(max);
  F top = before, top2 = before;
  for (int key = 0; key < keys; key += 2) {
    top = S::Max(top, S::Load(scores + key * width));
    top2 = S::Max(top2, S::Load(scores + (key + 1) * width));
  }
  top = S::Max(top, top2);
  const F finite = FiniteMax<S>(top);
  const F shrink = S::Exp2(S::Mul(S::Sub(before, finite), scale));
  F total = S::Mul(S::Load(sum), shrink), total2 = S::Zero();
  for (int key = 0; key < keys; key += 2) {
    const F p0 = S::Exp2(S::Mul(S::Sub(S::Load(scores + key * width), finite), scale));
    const F p1 = S::Exp2(S::Mul(S::Sub(S::Load(scores + (key + 1) * width), finite), scale));
    total = S::Add(total, p0);
    total2 = S::Add(total2, p1);
    S::StorePair(p0, p1, probs, width);
    probs += (S::kPairs ? 1 : 2) * width;
  }
  S::Store(max, top);
  S::Store(sum, S::Add(total, total2));
  return shrink;
}

// out[padded_size][width] = out * shrink + values^T probs, over the blocks of one pass.
template <class S, int kV>
inline void AddValues(const TileJob& job, const int* pass, int count, const float* shrink,
                      int width) {
  constexpr int kKeysPerUnit = S::kPairs ? 2 : 1;
  for (int d = 0; d < job.padded_size; d += kGroup) {
    for (int column = 0; column < width; column += kV * S::kLanes) {
      typename S::F acc[kGroup][kV];
      for (int v = 0; v < kV; ++v) {
        const typename S::F factor = S::Load(shrink + column + v * S::kLanes);
        for (int r = 0; r < kGroup; ++r) {
          acc[r][v] = S::Mul(S::Load(job.out + (d + r) * width + column + v * S::kLanes), factor);
        }
      }
      const uint32_t* probs = job.probs + column;
      for (int i = 0; i < count; ++i) {
        const int block = pass[i];
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
    }
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

template <class S, int kV>
inline void RunTile(const TileJob& job, int width) {
  if constexpr (S::kTiles) return S::RunJob(job, width);
  alignas(64) float shrink[kMaxWidth];
  if (!job.resume) Begin<S>(job, width);

  int pass[kKeysPerPass / kGroup];
  for (int next = 0; next < job.num_blocks;) {
    int count = 0, keys = 0;
    for (; next < job.num_blocks; ++next, ++count) {
      const int block = job.blocks != nullptr ? job.blocks[next] : next;
      const int padded = Padded<S>(job.head.block_length[block]);
      if (keys + padded > kKeysPerPass) break;
      float* scores = job.scores + keys * width;
      ScoreBlock<S, kV>(job, block, scores, width);
      HideScores<S>(job, next, block, scores, width);
      pass[count] = block;
      keys += padded;
    }
    for (int q = 0; q < width; q += S::kLanes) {
      typename S::F scale = S::Set1(job.scale_log2);
      if constexpr (S::kInt8) scale = S::Mul(scale, S::Load(job.query_scale + q));
      const typename S::F factor = SoftmaxLanes<S>(job.scores + q, keys, width, scale, job.max + q,
                                                   job.sums + q, job.probs + q);
      S::Store(shrink + q, factor);
    }
    AddValues<S, kV>(job, pass, count, shrink, width);
  }
}

template <class S>
inline void RunTileOfWidth(const TileJob& job, int width) {
  constexpr int kWidest = S::kColumns;
  if (width >= kWidest * S::kLanes) return RunTile<S, kWidest>(job, width);
  if constexpr (kWidest > 2) {
    if (width == 2 * S::kLanes) return RunTile<S, 2>(job, width);
  }
  RunTile<S, 1>(job, width);
}
