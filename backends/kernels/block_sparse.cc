#include "backends/kernels/block_sparse.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/kernels/head_packs.h"
#include "backends/kernels/transpose.h"
#include "backends/kernels/variants.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// What hides or shifts single scores of one (batch, head, query block).
struct ScoreEdit {
  const BlockPlan* plan;
  const BlockSparseCall* call;
  Span queries;
  const float* bias;         // at [b, h], or null
  const float* query_scale;  // null, or what each lane's scores still lack

  float Bias(int64_t query, int64_t key) const {
    return bias[query * call->bias_strides[2] + key * call->bias_strides[3]];
  }
  bool Hides(int64_t query, int64_t key) const {
    if (call->causal && key > query) return true;
    return bias != nullptr && Bias(query, key) == -std::numeric_limits<float>::infinity();
  }
};

int TokenAt(const std::vector<int32_t>& order, int position) {
  return order.empty() ? position : order[position];
}

constexpr int kLanes = 8;

// Of a pair that is not hidden: masks of the least number hide the like, but where all of a row's
// are, it attends them all. Half of it, so that a score beside it does not make it infinite.
constexpr float kLeastBias = std::numeric_limits<float>::lowest() / 2;

// What EditOne does to up to eight keys from `key` on, `scores` being theirs, and eight queries,
// some of which may lie past the block's last. Their bias lies by rows of queries, scores by rows
// of keys.
void AddBias8(const ScoreEdit& edit, Span keys, int key, int query, float* scores, int width) {
  const int count = std::min(kLanes, keys.length - key);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i some = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  __m256 bias[kLanes];
  for (int q = 0; q < kLanes; ++q) {
    const int64_t row = edit.queries.first + std::min(query + q, edit.queries.length - 1);
    const float* from = edit.bias + row * edit.call->bias_strides[2] + keys.first + key;
    bias[q] = _mm256_maskload_ps(from, some);
  }
  TransposeEight(bias);
  const __m256 hidden = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const __m256 per_scale = _mm256_set1_ps(1.0f / edit.call->scale);  // scores are not scaled yet
  const __m256 per_query = edit.query_scale != nullptr ? _mm256_loadu_ps(edit.query_scale + query)
                                                       : _mm256_set1_ps(1.0f);
  const __m256 least = _mm256_set1_ps(kLeastBias);
  for (int k = 0; k < count; ++k) {
    float* at = scores + k * width + query;
    const __m256 shift =
        _mm256_max_ps(least, _mm256_div_ps(_mm256_mul_ps(bias[k], per_scale), per_query));
    const __m256 shifted = _mm256_add_ps(_mm256_loadu_ps(at), shift);
    const __m256 hides = _mm256_cmp_ps(bias[k], hidden, _CMP_EQ_OQ);
    _mm256_storeu_ps(at, _mm256_blendv_ps(shifted, hidden, hides));
  }
}

void EditOne(const ScoreEdit& edit, int64_t query, int64_t key, int lane, float* score) {
  if (edit.Hides(query, key)) {
    *score = -std::numeric_limits<float>::infinity();  // also where it is not a number
  } else if (edit.bias != nullptr) {
    const float per_scale = 1.0f / edit.call->scale;
    const float per_query = edit.query_scale != nullptr ? edit.query_scale[lane] : 1.0f;
    const float shift = edit.Bias(query, key) * per_scale / per_query;
    *score += shift < kLeastBias ? kLeastBias : shift;
  }
}

// exp(s) so many times is exp(s + log(count)).
void CountLastKey(const ScoreEdit& edit, Span keys, float* scores, int width) {
  if (keys.first + keys.length != edit.call->kv_len) return;
  const float more =
      std::log(static_cast<float>(edit.call->last_key_count)) / edit.call->scale;  // not scaled yet
  float* const last = scores + (keys.length - 1) * width;
  for (int q = 0; q < edit.queries.length; ++q) last[q] += more;
}

void EditScores(const void* context, int block, float* scores, int width) {
  const ScoreEdit& edit = *static_cast<const ScoreEdit*>(context);
  if (edit.call->last_key_count > 1) {
    CountLastKey(edit, edit.plan->key_blocks[block], scores, width);
  }
  if (edit.bias == nullptr && !edit.call->causal) return;
  const Span keys = edit.plan->key_blocks[block];
  const bool in_order = edit.plan->key_order.empty() && edit.plan->query_order.empty();
  const bool below = keys.first + keys.length - 1 <= edit.queries.first;  // the diagonal
  if (edit.bias == nullptr && below && in_order) return;
  if (in_order && edit.bias != nullptr && edit.call->bias_strides[3] == 1 &&
      (below || !edit.call->causal)) {
    for (int k = 0; k < keys.length; k += kLanes) {
      for (int q = 0; q < edit.queries.length; q += kLanes) {
        AddBias8(edit, keys, k, q, scores + k * width, width);
      }
    }
    return;
  }
  for (int k = 0; k < keys.length; ++k) {
    const int64_t key = TokenAt(edit.plan->key_order, keys.first + k);
    for (int q = 0; q < edit.queries.length; ++q) {
      const int64_t query = TokenAt(edit.plan->query_order, edit.queries.first + q);
      EditOne(edit, query, key, q, scores + k * width + q);
    }
  }
}

// One call: tiles, whose heads are packed by who first asks.
class Runner {
 public:
  Runner(const BlockSparseCall& call, const BlockPlan& plan, const UnitFormat& format,
         TileKernel kernel)
      : call_(call),
        plan_(plan),
        packs_(call, plan.key_order, plan.key_blocks, format),
        kernel_(kernel) {}

  void Run(const RunWorkers& run_workers) {
    packs_.ForEachTurn(run_workers,
                       [&](int64_t first, int64_t heads) { RunTiles(first, heads, run_workers); });
  }

 private:
  void RunTiles(int64_t first, int64_t heads, const RunWorkers& run_workers) {
    const int64_t blocks = static_cast<int64_t>(plan_.query_blocks.size()), tasks = heads * blocks;
    TaskShares shares(tasks);
    SharedStop stop;
    run_workers(tasks, [&](const Worker& worker) {
      TileDesk desk(packs_);
      for (int64_t i; (i = shares.Take(worker)) >= 0;) {
        if (stop.Asked()) return;
        RunTile(first + i / blocks, i / blocks, static_cast<int>(i % blocks), &desk);
      }
    });
    stop.ThrowIfAsked();
  }

  void ListFor(int64_t head, int block, TileJob* job) const {
    if (plan_.lists == 0) {
      job->num_blocks = static_cast<int>(plan_.key_blocks.size());
      return;
    }
    const int64_t list = head % plan_.lists;
    const int64_t row = list * static_cast<int64_t>(plan_.query_blocks.size()) + block;
    const int64_t begin = plan_.row_begin[row];
    job->num_blocks = static_cast<int>(plan_.row_begin[row + 1] - begin);
    job->blocks = plan_.columns.data() + begin;
    if (!plan_.row_masks.empty()) job->row_masks = plan_.row_masks.data() + begin;
  }

  void RunTile(int64_t head, int64_t slot, int block, TileDesk* desk) {
    const Span queries = plan_.query_blocks[block];
    const int32_t* order = plan_.query_order.empty() ? nullptr : plan_.query_order.data();
    TileJob job = desk->Begin(slot, RowsOf(call_, call_.query, head, order, queries));
    ListFor(head, block, &job);
    ScoreEdit edit{&plan_, &call_, queries, nullptr,
                   packs_.format().int8() ? job.query_scale : nullptr};
    if (call_.bias != nullptr) {
      edit.bias = call_.bias + (head / call_.heads) * call_.bias_strides[0] +
                  (head % call_.heads) * call_.bias_strides[1];
    }
    if (call_.causal || edit.bias != nullptr || call_.last_key_count > 1) {
      job.edit = EditScores;
      job.edit_context = &edit;
    }
    kernel_(job, desk->width());
    AddOddValues(head, slot, edit, job, desk->width());
    MarkLostRows(edit, job);
    desk->Finish(job, 0.0f, OutRowsOf(call_, head, order, queries));
  }

  // A sum of 0 is a row that attends nothing, or one whose scores are all -inf: that one is NaN.
  void MarkLostRows(const ScoreEdit& edit, const TileJob& job) const {
    for (int q = 0; q < job.rows; ++q) {
      if (job.sums[q] == 0.0f && AttendsAny(edit, job, q)) {
        job.sums[q] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  bool AttendsAny(const ScoreEdit& edit, const TileJob& job, int q) const {
    const int64_t query = TokenAt(plan_.query_order, edit.queries.first + q);
    for (int entry = 0; entry < job.num_blocks; ++entry) {
      if (job.row_masks != nullptr && ((job.row_masks[entry] >> q) & 1) == 0) continue;
      const Span keys = plan_.key_blocks[job.blocks != nullptr ? job.blocks[entry] : entry];
      for (int k = 0; k < keys.length; ++k) {
        if (!edit.Hides(query, TokenAt(plan_.key_order, keys.first + k))) return true;
      }
    }
    return false;
  }

  // Values that are not finite were packed as 0: here they reach the rows that attend them.
  void AddOddValues(int64_t head, int64_t slot, const ScoreEdit& edit, const TileJob& job,
                    int width) {
    for (int entry = 0; entry < job.num_blocks; ++entry) {
      const int block = job.blocks != nullptr ? job.blocks[entry] : entry;
      if (!packs_.IsOdd(slot, block)) continue;
      const Span keys = plan_.key_blocks[block];
      const Rows rows = packs_.ValuesOf(head, block);
      const uint64_t rows_in = job.row_masks != nullptr ? job.row_masks[entry] : ~uint64_t{0};
      for (int k = 0; k < keys.length; ++k) {
        AddOddValue(rows, k, TokenAt(plan_.key_order, keys.first + k), rows_in, edit, job, width);
      }
    }
  }

  void AddOddValue(const Rows& rows, int k, int64_t key, uint64_t rows_in, const ScoreEdit& edit,
                   const TileJob& job, int width) {
    float value[kMaxHeadSize];
    LoadValue(packs_.format(), rows, k, value);
    for (int d = 0; d < packs_.format().head_size; ++d) {
      if (std::isfinite(value[d])) continue;
      for (int q = 0; q < job.rows; ++q) {
        const int64_t query = TokenAt(plan_.query_order, edit.queries.first + q);
        if (((rows_in >> q) & 1) != 0 && !edit.Hides(query, key))
          job.out[d * width + q] += value[d];
      }
    }
  }

  const BlockSparseCall& call_;
  const BlockPlan& plan_;
  HeadPacks packs_;
  const TileKernel kernel_;
};

}  // namespace

std::vector<Span> CutEvenly(int64_t length) {
  std::vector<Span> blocks;
  for (int64_t first = 0; first < length; first += kBlock) {
    blocks.push_back({static_cast<int32_t>(first),
                      static_cast<int32_t>(std::min<int64_t>(kBlock, length - first))});
  }
  return blocks;
}

BlockPlan DensePlan(int64_t q_len, int64_t kv_len, bool causal) {
  BlockPlan plan;
  plan.query_blocks = CutEvenly(q_len);
  plan.key_blocks = CutEvenly(kv_len);
  if (!causal) return plan;
  plan.lists = 1;
  plan.row_begin = {0};
  for (const Span& queries : plan.query_blocks) {
    for (size_t key = 0; key < plan.key_blocks.size(); ++key) {
      if (plan.key_blocks[key].first < queries.first + queries.length) {
        plan.columns.push_back(static_cast<int32_t>(key));
      }
    }
    plan.row_begin.push_back(static_cast<int64_t>(plan.columns.size()));
  }
  return plan;
}

void BlockSparseAttention(const BlockSparseCall& call, const BlockPlan& plan, Isa isa,
                          const RunWorkers& run_workers, TileKernel kernel) {
  const Variant& variant = VariantOf(isa);
  Runner(call, plan, FormatOf(variant, call), kernel != nullptr ? kernel : variant.kernel)
      .Run(run_workers);
}

}  // namespace denoised::kernels
