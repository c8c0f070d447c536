#include "backends/kernels/block_sparse.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "backends/kernels/pack.h"
#include "backends/kernels/tile.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], FreeDeleter>;

template <class T>
Buffer<T> Allocate(int64_t count) {
  void* p = std::aligned_alloc(64, static_cast<size_t>(RoundUp(count * sizeof(T), 64)));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

// One line an instruction set: what it is called, runs, needs, and how its units are packed.
struct Variant {
  Isa isa;
  const char* name;
  TileKernel kernel;
  bool (*has)(const DeviceInfo& cpu);
  bool pairs;  // values are pairs of bfloat16
  bool tiles;
  Scores scores;
};

bool HasAvx2(const DeviceInfo& cpu) { return cpu.avx2; }
bool HasAvx512(const DeviceInfo& cpu) { return cpu.avx512; }
bool HasBf16(const DeviceInfo& cpu) { return cpu.avx512_bf16; }
bool HasVnni(const DeviceInfo& cpu) { return cpu.avx512_vnni; }
bool HasVnniBf16(const DeviceInfo& cpu) { return cpu.avx512_vnni && cpu.avx512_bf16; }
bool HasAmx(const DeviceInfo& cpu) { return HasVnniBf16(cpu) && cpu.amx_bf16 && cpu.amx_int8; }

constexpr Variant kVariants[] = {
    // clang-format off
    {Isa::kAvx2,         "AVX2",                   TileAvx2,         HasAvx2,     false, false, Scores::kExact},
    {Isa::kAvx512,       "AVX-512",                TileAvx512,       HasAvx512,   false, false, Scores::kExact},
    {Isa::kAvx512Bf16,   "AVX-512 BF16",           TileAvx512Bf16,   HasBf16,     true,  false, Scores::kExact},
    {Isa::kAmxBf16,      "AMX BF16",               TileAmxBf16,      HasAmx,      true,  true,  Scores::kExact},
    {Isa::kAvx2Int8,     "AVX2 INT8",              TileAvx2Int8,     HasAvx2,     false, false, Scores::kWords},
    {Isa::kAvx512Int8,   "AVX-512 INT8",           TileAvx512Int8,   HasAvx512,   false, false, Scores::kWords},
    {Isa::kVnniInt8,     "AVX-512 VNNI INT8",      TileVnniInt8,     HasVnni,     false, false, Scores::kBytes},
    {Isa::kVnniBf16Int8, "AVX-512 VNNI BF16 INT8", TileVnniBf16Int8, HasVnniBf16, true,  false, Scores::kBytes},
    {Isa::kAmxInt8,      "AMX INT8",               TileAmxInt8,      HasAmx,      true,  true,  Scores::kBytes},
    // clang-format on
};

const Variant& VariantOf(Isa isa) { return kVariants[static_cast<int>(isa)]; }

// The last of the candidates that the CPU has: they stand in rising order.
Isa LastOf(std::initializer_list<Isa> candidates, const DeviceInfo& cpu) {
  Isa best = *candidates.begin();
  for (Isa isa : candidates) {
    if (HasIsa(isa, cpu)) best = isa;
  }
  return best;
}

UnitFormat FormatOf(const Variant& variant, const BlockSparseCall& call) {
  UnitFormat format;
  format.element = call.element;
  format.head_size = static_cast<int>(call.head_size);
  format.pairs = variant.pairs;
  format.tiles = variant.tiles;
  format.scores = variant.scores;
  return format;
}

// Scratch of one thread.
struct Workspace {
  explicit Workspace(const UnitFormat& format)
      : query(Allocate<uint32_t>(int64_t{format.units()} * kMaxWidth)),
        out(Allocate<float>(int64_t{format.padded_size()} * kMaxWidth)),
        sums(Allocate<float>(kMaxWidth)),
        query_scale(Allocate<float>(kMaxWidth)),
        query_offset(Allocate<int32_t>(kMaxWidth)),
        scores(Allocate<float>(int64_t{kKeysPerPass} * kMaxWidth)),
        probs(Allocate<uint32_t>(int64_t{kKeysPerPass} * kMaxWidth)) {}
  Buffer<uint32_t> query;
  Buffer<float> out, sums, query_scale;
  Buffer<int32_t> query_offset;
  Buffer<float> scores;
  Buffer<uint32_t> probs;
};

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

void EditScores(const void* context, int block, float* scores, int width) {
  const ScoreEdit& edit = *static_cast<const ScoreEdit*>(context);
  const Span keys = edit.plan->key_blocks[block];
  if (edit.bias == nullptr && keys.first + keys.length - 1 <= edit.queries.first &&
      edit.plan->key_order.empty() && edit.plan->query_order.empty()) {
    return;  // below the diagonal
  }
  const float hidden = -std::numeric_limits<float>::infinity();
  const float per_scale = 1.0f / edit.call->scale;  // scores are not scaled yet
  for (int k = 0; k < keys.length; ++k) {
    const int64_t key = TokenAt(edit.plan->key_order, keys.first + k);
    for (int q = 0; q < edit.queries.length; ++q) {
      const int64_t query = TokenAt(edit.plan->query_order, edit.queries.first + q);
      float& score = scores[k * width + q];
      if (edit.Hides(query, key)) {
        score = hidden;  // also where it is not a number
      } else if (edit.bias != nullptr) {
        const float per_query = edit.query_scale != nullptr ? edit.query_scale[q] : 1.0f;
        score += edit.Bias(query, key) * per_scale / per_query;
      }
    }
  }
}

// One call: packs heads, then runs tiles.
class Runner {
 public:
  Runner(const BlockSparseCall& call, const BlockPlan& plan, const UnitFormat& format,
         TileKernel kernel)
      : call_(call), plan_(plan), format_(format), kernel_(kernel) {
    for (const Span& block : plan.key_blocks) {
      block_first_.push_back(static_cast<int32_t>(packed_keys_));
      block_length_.push_back(block.length);
      packed_keys_ += RoundUp(block.length, format_.key_group());
    }
    key_units_ = packed_keys_ * format_.score_units();
    value_units_ = packed_keys_ / format_.keys_per_unit() * format_.padded_size();
  }

  void Run(const RunWorkers& run_workers) {
    const int64_t all = call_.batch * call_.heads;
    const int64_t turn = std::clamp<int64_t>(kMaxPackedUnits / (key_units_ + value_units_), 1, all);
    packed_ = Allocate<uint32_t>(turn * (key_units_ + value_units_));
    odd_values_.resize(turn * plan_.key_blocks.size());
    if (format_.int8()) {
      key_scale_ = Allocate<float>(turn * packed_keys_);
      key_mean_ = Allocate<float>(turn * format_.padded_size());
    }
    for (int64_t first = 0; first < all; first += turn) {
      const int64_t heads = std::min(turn, all - first);
      PackHeads(first, heads, run_workers);
      RunTiles(first, heads, run_workers);
    }
  }

 private:
  uint32_t* Keys(int64_t slot) { return packed_.get() + slot * (key_units_ + value_units_); }
  uint32_t* Values(int64_t slot) { return Keys(slot) + key_units_; }

  Rows RowsOf(const View& view, int64_t head, const std::vector<int32_t>& order, Span span) const {
    const int64_t offset =
        (head / call_.heads) * view.batch_stride + (head % call_.heads) * view.head_stride;
    const int64_t size = call_.element == Element::kFloat32 ? 4 : 2;
    return {static_cast<const char*>(view.data) + offset * size, view.token_stride,
            order.empty() ? nullptr : order.data(), span};
  }

  // The mean key of each head, which int8 keys go without.
  void FindMeans(int64_t first, int64_t heads, const RunWorkers& run_workers) {
    std::atomic<int64_t> next{0};
    static const std::vector<int32_t> kRaster;
    const Span all{0, static_cast<int32_t>(call_.kv_len)};
    run_workers(heads, [&] {
      for (int64_t slot; (slot = next.fetch_add(1, std::memory_order_relaxed)) < heads;) {
        MeanOfRows(format_, RowsOf(call_.key, first + slot, kRaster, all),
                   key_mean_.get() + slot * format_.padded_size());
      }
    });
  }

  void PackHeads(int64_t first, int64_t heads, const RunWorkers& run_workers) {
    if (format_.int8()) FindMeans(first, heads, run_workers);
    const int64_t blocks = static_cast<int64_t>(plan_.key_blocks.size()), tasks = heads * blocks;
    std::atomic<int64_t> next{0};
    SharedStop stop;
    run_workers(tasks, [&] {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        if (stop.Asked()) return;
        // Heads innermost: a token's heads lie side by side, on one memory page.
        PackBlock(first + i % heads, i % heads, i / heads);
      }
    });
    stop.ThrowIfAsked();
  }

  void PackBlock(int64_t head, int64_t slot, int64_t block) {
    const Span span = plan_.key_blocks[block];
    const int64_t at = block_first_[block];
    const Rows keys = RowsOf(call_.key, head, plan_.key_order, span);
    uint32_t* packed = Keys(slot) + at * format_.score_units();
    if (format_.int8()) {
      PackKeysInt8(format_, keys, key_mean_.get() + slot * format_.padded_size(), packed,
                   key_scale_.get() + slot * packed_keys_ + at);
    } else {
      PackKeys(format_, keys, packed);
    }
    odd_values_[slot * static_cast<int64_t>(plan_.key_blocks.size()) + block] =
        PackValues(format_, RowsOf(call_.value, head, plan_.key_order, span),
                   Values(slot) + at / format_.keys_per_unit() * format_.padded_size());
  }

  void RunTiles(int64_t first, int64_t heads, const RunWorkers& run_workers) {
    const int64_t blocks = static_cast<int64_t>(plan_.query_blocks.size()), tasks = heads * blocks;
    std::atomic<int64_t> next{0};
    SharedStop stop;
    run_workers(tasks, [&] {
      const Workspace work(format_);
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        if (stop.Asked()) return;
        RunTile(first + i / blocks, i / blocks, static_cast<int>(i % blocks), work);
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

  void RunTile(int64_t head, int64_t slot, int block, const Workspace& work) {
    const Span queries = plan_.query_blocks[block];
    const int width = queries.length <= 16 ? 16 : queries.length <= 32 ? 32 : 64;
    const Rows rows = RowsOf(call_.query, head, plan_.query_order, queries);
    if (format_.int8()) {
      PackQueryInt8(format_, rows, width, work.query.get(), work.query_scale.get(),
                    work.query_offset.get());
    } else {
      PackQuery(format_, rows, width, work.query.get());
    }
    TileJob job{};
    job.head = {Keys(slot), Values(slot),
                key_scale_ ? key_scale_.get() + slot * packed_keys_ : nullptr, block_first_.data(),
                block_length_.data()};
    job.query = work.query.get();
    job.query_scale = work.query_scale.get();
    job.query_offset = work.query_offset.get();
    job.units = format_.score_units();
    job.padded_size = format_.padded_size();
    job.scale_log2 = call_.scale * kLog2E;
    job.rows = queries.length;
    job.out = work.out.get();
    job.sums = work.sums.get();
    job.scores = work.scores.get();
    job.probs = work.probs.get();
    ListFor(head, block, &job);
    ScoreEdit edit{&plan_, &call_, queries, nullptr,
                   format_.int8() ? work.query_scale.get() : nullptr};
    if (call_.bias != nullptr) {
      edit.bias = call_.bias + (head / call_.heads) * call_.bias_strides[0] +
                  (head % call_.heads) * call_.bias_strides[1];
    }
    if (call_.causal || edit.bias != nullptr) {
      job.edit = EditScores;
      job.edit_context = &edit;
    }
    kernel_(job, width);
    AddOddValues(head, slot, edit, job, width);
    const bool may_be_empty =
        call_.causal || edit.bias != nullptr || job.row_masks != nullptr || job.num_blocks == 0;
    // Where nothing is hidden, only scores that are all -inf leave a sum of 0.
    const float nothing = may_be_empty ? 0 : std::numeric_limits<float>::quiet_NaN();
    StoreTile(format_, job.out, job.sums, width, nothing, OutRows(head, queries));
  }

  // Values that are not finite were packed as 0: here they reach the rows that attend them.
  void AddOddValues(int64_t head, int64_t slot, const ScoreEdit& edit, const TileJob& job,
                    int width) {
    const uint8_t* odd = odd_values_.data() + slot * static_cast<int64_t>(plan_.key_blocks.size());
    for (int entry = 0; entry < job.num_blocks; ++entry) {
      const int block = job.blocks != nullptr ? job.blocks[entry] : entry;
      if (odd[block] == 0) continue;
      const Span keys = plan_.key_blocks[block];
      const Rows rows = RowsOf(call_.value, head, plan_.key_order, keys);
      const uint64_t rows_in = job.row_masks != nullptr ? job.row_masks[entry] : ~uint64_t{0};
      for (int k = 0; k < keys.length; ++k) {
        AddOddValue(rows, k, TokenAt(plan_.key_order, keys.first + k), rows_in, edit, job, width);
      }
    }
  }

  void AddOddValue(const Rows& rows, int k, int64_t key, uint64_t rows_in, const ScoreEdit& edit,
                   const TileJob& job, int width) {
    float value[kMaxHeadSize];
    LoadValue(format_, rows, k, value);
    for (int d = 0; d < format_.head_size; ++d) {
      if (std::isfinite(value[d])) continue;
      for (int q = 0; q < job.rows; ++q) {
        const int64_t query = TokenAt(plan_.query_order, edit.queries.first + q);
        if (((rows_in >> q) & 1) != 0 && !edit.Hides(query, key))
          job.out[d * width + q] += value[d];
      }
    }
  }

  Rows OutRows(int64_t head, Span queries) const {
    const View out{call_.out, call_.q_len * call_.heads * call_.head_size,
                   call_.heads * call_.head_size, call_.head_size};
    return RowsOf(out, head, plan_.query_order, queries);
  }

  const BlockSparseCall& call_;
  const BlockPlan& plan_;
  const UnitFormat format_;
  const TileKernel kernel_;
  std::vector<int32_t> block_first_, block_length_;
  int64_t packed_keys_ = 0, key_units_ = 0, value_units_ = 0;
  Buffer<uint32_t> packed_;
  std::vector<uint8_t> odd_values_;     // [slot][key block]: it has values that are not finite
  Buffer<float> key_scale_, key_mean_;  // int8 only
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

const char* IsaName(Isa isa) { return VariantOf(isa).name; }

bool IsInt8(Isa isa) { return VariantOf(isa).scores != Scores::kExact; }

bool HasIsa(Isa isa, const DeviceInfo& cpu) { return VariantOf(isa).has(cpu); }

Isa BestIsa(Element element, const DeviceInfo& cpu, bool unmeasured) {
  if (element == Element::kFloat32) return LastOf({Isa::kAvx2, Isa::kAvx512}, cpu);
  if (unmeasured && HasIsa(Isa::kAmxBf16, cpu)) return Isa::kAmxBf16;
  return LastOf({Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}, cpu);
}

Isa Int8Isa(const DeviceInfo& cpu, bool unmeasured) {
  if (unmeasured && HasIsa(Isa::kAmxInt8, cpu)) return Isa::kAmxInt8;
  return LastOf({Isa::kAvx2Int8, Isa::kAvx512Int8, Isa::kVnniInt8, Isa::kVnniBf16Int8}, cpu);
}

void BlockSparseAttention(const BlockSparseCall& call, const BlockPlan& plan, Isa isa,
                          const RunWorkers& run_workers, TileKernel kernel) {
  const Variant& variant = VariantOf(isa);
  Runner(call, plan, FormatOf(variant, call), kernel != nullptr ? kernel : variant.kernel)
      .Run(run_workers);
}

}  // namespace denoised::kernels
