// The tile kernel, once, over a vector type `S`. Each instruction set's file defines S in its own
// unnamed namespace and includes this there, so that no two files share a symbol.
//
// S: F (vector), kLanes, kColumns (vectors of the register tile's width; kScoreColumns of that of
// scores; kWeighColumns weighed at once), kPairs (units are pairs of bfloat16), Zero, Set1, Load,
// Store, Max, Sub, Mul, Add, Exp2, Exp2Float, MulAdd(acc, unit, unit), BroadcastUnit, LoadUnits,
// StorePair(p0, p1, out, width), HideRows(scores, mask), kInt8; with kInt8 also I (vector of
// int32), LoadInts, DotUnits(acc, query unit, key unit), ToFloat; kTiles, kKeyGroup (what blocks
// are padded to); with kTiles it runs a job in its own way, RunJob.

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
  // Many runs are of 32 or 64 units: a branch for each one shows.
#pragma GCC unroll 4
  for (int u = 0; u < units; ++u, a += kGroup, b += width) {
    typename S::F column[kV];
    for (int v = 0; v < kV; ++v) column[v] = S::LoadUnits(b + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) {
      const typename S::F unit = S::BroadcastUnit(a + r);
      for (int v = 0; v < kV; ++v) acc[r][v] = S::MulAdd(acc[r][v], column[v], unit);
    }
  }
}

// Scores of four keys, in acc, go to scores[4][kWidth] at `column`, and the largest of each column
// so far to most[kWidth].
template <class S, int kWidth, int kV>
inline void StoreScores(const typename S::F (&acc)[kGroup][kV], int column, float* scores,
                        float* most) {
  for (int v = 0; v < kV; ++v) {
    const int at = column + v * S::kLanes;
    for (int r = 0; r < kGroup; ++r) S::Store(scores + r * kWidth + at, acc[r][v]);
    const typename S::F top = S::Max(S::Max(acc[0][v], acc[1][v]), S::Max(acc[2][v], acc[3][v]));
    S::Store(most + at, S::Max(S::Load(most + at), top));
  }
}

// Four keys against kV vectors of queries: int8 dot products, brought back to the size of k. That
// of q goes into the softmax scale.
template <class S, int kWidth, int kV>
inline void ScoreFourInt8(const TileJob& job, const uint32_t* keys, const float* key_scale,
                          int column, typename S::F (&scores)[kGroup][kV]) {
  typename S::I acc[kGroup][kV];
  for (int v = 0; v < kV; ++v) {
    const typename S::I offset = S::LoadInts(job.query_offset + column + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) acc[r][v] = offset;
  }
  const uint32_t* query = job.query + column;
  for (int u = 0; u < job.units; ++u, keys += kGroup, query += kWidth) {
    typename S::F unit[kV];
    for (int v = 0; v < kV; ++v) unit[v] = S::LoadUnits(query + v * S::kLanes);
    for (int r = 0; r < kGroup; ++r) {
      const typename S::F key = S::BroadcastUnit(keys + r);
      for (int v = 0; v < kV; ++v) acc[r][v] = S::DotUnits(acc[r][v], unit[v], key);
    }
  }
  for (int r = 0; r < kGroup; ++r) {
    const typename S::F scale = S::Set1(key_scale[r]);
    for (int v = 0; v < kV; ++v) scores[r][v] = S::Mul(S::ToFloat(acc[r][v]), scale);
  }
}

// Scores of one key block into scores[length4][kWidth]; `most` as above.
template <class S, int kWidth>
inline void ScoreBlock(const TileJob& job, int block, float* scores, float* most) {
  const int first = job.head.block_first[block], length = job.head.block_length[block];
  for (int key = 0; key < length; key += kGroup) {
    const uint32_t* keys = job.head.keys + static_cast<int64_t>(first + key) * job.units;
    ForColumns<S, S::kScoreColumns>(kWidth, [&](auto columns, int column) {
      constexpr int kV = columns;
      typename S::F acc[kGroup][kV];
      if constexpr (S::kInt8) {
        ScoreFourInt8<S, kWidth, kV>(job, keys, job.head.key_scale + first + key, column, acc);
      } else {
        for (auto& row : acc) {
          for (auto& x : row) x = S::Zero();
        }
        MultiplyUnits<S, kV>(keys, job.query + column, job.units, kWidth, acc);
      }
      StoreScores<S, kWidth>(acc, column, scores + key * kWidth, most);
    });
  }
}

template <class S>
inline int Padded(int length) {
  return (length + S::kKeyGroup - 1) / S::kKeyGroup * S::kKeyGroup;
}

// Whether the keys of a block are hidden from single rows.
inline bool MasksRows(const TileJob& job, int entry) {
  return job.row_masks != nullptr && job.row_masks[entry] != ~uint64_t{0};
}

// Whether HideScores may change any.
template <class S>
inline bool Hides(const TileJob& job, int entry, int block) {
  return job.head.block_length[block] % S::kKeyGroup != 0 || MasksRows(job, entry) ||
         job.edit != nullptr;
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
  if (MasksRows(job, entry)) {
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

// How kV vectors of queries weigh their scores, and what the weights come to.
template <class S, int kV>
struct Weighing {
  typename S::F finite[kV], scale[kV], total[kV];
};

// The scores of `keys` keys, an even number, become probabilities. All vectors key by key, so that
// memory is read in order.
template <class S, int kV>
inline void Weigh(const float* scores, int keys, int64_t width, Weighing<S, kV>* weighing,
                  uint32_t* probs) {
  Weighing<S, kV> w = *weighing;
  for (int key = 0; key < keys; key += 2) {
    for (int v = 0; v < kV; ++v) {
      const float* const at = scores + key * width + v * S::kLanes;
      const auto weight = [&](const float* score) {
        return S::Exp2(S::Mul(S::Sub(S::Load(score), w.finite[v]), w.scale[v]));
      };
      const typename S::F p0 = weight(at), p1 = weight(at + width);
      w.total[v] = S::Add(w.total[v], S::Add(p0, p1));
      S::StorePair(p0, p1, probs + v * S::kLanes, static_cast<int>(width));
    }
    probs += (S::kPairs ? 1 : 2) * width;
  }
  *weighing = w;
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

// Scores of one pass become probabilities; `most` has the largest of each column, of this pass and
// those before. Updates the running maximum and sum of kV vectors of queries and gives the factors
// by which what was summed before shrinks.
template <class S, int kWidth, int kV>
inline void SoftmaxColumns(const TileJob& job, int lane, int keys, const float* most,
                           float* shrinks) {
  Weighing<S, kV> weighing;
  for (int v = 0; v < kV; ++v) {
    const int at = lane + v * S::kLanes;
    const typename S::F before = S::Load(job.max + at), top = S::Load(most + at);
    weighing.scale[v] = ScaleOf<S>(job, at);
    weighing.finite[v] = FiniteMax<S>(top);
    const typename S::F shrink = ShrinkOf<S>(before, weighing.finite[v], weighing.scale[v]);
    weighing.total[v] = S::Mul(S::Load(job.sums + at), shrink);
    S::Store(job.max + at, top);
    S::Store(shrinks + at, shrink);
  }
  Weigh<S, kV>(job.scores + lane, keys, kWidth, &weighing, job.probs + lane);
  for (int v = 0; v < kV; ++v) S::Store(job.sums + lane + v * S::kLanes, weighing.total[v]);
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

// out[padded_size][kWidth] = out * shrink + values^T probs, over the blocks of one pass.
template <class S, int kWidth>
inline void AddValues(const TileJob& job, const Pass<S>& pass, const float* shrink) {
  constexpr int kKeysPerUnit = S::kPairs ? 2 : 1;
  for (int d = 0; d < job.padded_size; d += kGroup) {
    ForColumns<S, S::kColumns>(kWidth, [&](auto columns, int column) {
      constexpr int kV = columns;
      float* const out = job.out + d * kWidth + column;
      typename S::F acc[kGroup][kV];
      for (int v = 0; v < kV; ++v) {
        const int at = v * S::kLanes;
        const typename S::F factor = S::Load(shrink + column + at);
        for (int r = 0; r < kGroup; ++r) acc[r][v] = S::Mul(S::Load(out + r * kWidth + at), factor);
      }
      const uint32_t* probs = job.probs + column;
      for (int i = 0; i < pass.count; ++i) {
        const int block = pass.blocks[i];
        const int units = Padded<S>(job.head.block_length[block]) / kKeysPerUnit;
        const int64_t first = static_cast<int64_t>(job.head.block_first[block]) / kKeysPerUnit;
        const uint32_t* values =
            job.head.values + first * job.padded_size + static_cast<int64_t>(d) * units;
        MultiplyUnits<S, kV>(values, probs, units, kWidth, acc);
        probs += static_cast<int64_t>(units) * kWidth;
      }
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < kV; ++v) S::Store(out + r * kWidth + v * S::kLanes, acc[r][v]);
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

// The largest scores of one block, and of `before`, as in StoreScores.
template <class S, int kWidth>
inline void FindMostOfBlock(const float* scores, int keys, const float* before, float* most) {
  for (int q = 0; q < kWidth; q += S::kLanes) {
    typename S::F top = S::Load(before + q), top2 = top;
    FindMost<S>(scores + q, keys, kWidth, &top, &top2);
    S::Store(most + q, S::Max(top, top2));
  }
}

template <class S, int kWidth>
inline void CopyRow(const float* from, float* to) {
  for (int q = 0; q < kWidth; q += S::kLanes) S::Store(to + q, S::Load(from + q));
}

// With a width that the compiler knows: it is in every address.
template <class S, int kWidth>
void RunTileOf(const TileJob& job) {
  alignas(64) float shrink[kWidth], most[kWidth], before[kWidth];
  if (!job.resume) Begin<S>(job, kWidth);

  Pass<S> pass;
  for (int next = 0; TakePass<S>(job, next, &pass); next += pass.count) {
    float* scores = job.scores;
    CopyRow<S, kWidth>(job.max, most);
    for (int i = 0; i < pass.count; ++i) {
      const int block = pass.blocks[i], padded = Padded<S>(job.head.block_length[block]);
      const bool hides = Hides<S>(job, next + i, block);
      if (hides) CopyRow<S, kWidth>(most, before);
      ScoreBlock<S, kWidth>(job, block, scores, most);
      if (hides) {
        HideScores<S>(job, next + i, block, scores, kWidth);
        FindMostOfBlock<S, kWidth>(scores, padded, before, most);
      }
      scores += padded * kWidth;
    }
    ForColumns<S, S::kWeighColumns>(kWidth, [&](auto columns, int lane) {
      SoftmaxColumns<S, kWidth, columns>(job, lane, pass.keys, most, shrink);
    });
    AddValues<S, kWidth>(job, pass, shrink);
  }
}

template <class S>
inline void RunTile(const TileJob& job, int width) {
  if constexpr (S::kTiles) {
    S::RunJob(job, width);
  } else if (width == 64) {
    RunTileOf<S, 64>(job);
  } else if (width == 32) {
    RunTileOf<S, 32>(job);
  } else {
    RunTileOf<S, 16>(job);
  }
}
