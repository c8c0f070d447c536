#include "backends/kernels/block_sparse.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "backends/kernels/pack.h"
#include "backends/kernels/tile.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// Packed keys and values held at once; more heads than fit are taken in turns. What is written is
// read soon after, so it should still be in a shared cache.
constexpr int64_t kMaxPackedUnits = int64_t{4} << 20;
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

TileKernel KernelOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return TileAvx2;
    case Isa::kAvx512:
      return TileAvx512;
    case Isa::kAvx512Bf16:
      return TileAvx512Bf16;
    case Isa::kAvx512Vnni:
      return TileAvx512Vnni;
    case Isa::kAmxBf16:
      return TileAmxBf16;
    case Isa::kAmxInt8:
      return TileAmxInt8;
  }
  return TileAvx2;
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
      if (edit.call->causal && key > query) {
        score = hidden;
      } else if (edit.bias != nullptr) {
        const float bias =
            edit.bias[query * edit.call->bias_strides[2] + key * edit.call->bias_strides[3]];
        score += bias * per_scale / (edit.query_scale != nullptr ? edit.query_scale[q] : 1.0f);
      }
    }
  }
}

// One call: packs heads, then runs tiles.
class Runner {
 public:
  Runner(const BlockSparseCall& call, const BlockPlan& plan, Isa isa, TileKernel kernel)
      : call_(call), plan_(plan), kernel_(kernel) {
    format_.element = call.element;
    format_.head_size = static_cast<int>(call.head_size);
    format_.int8 = isa == Isa::kAvx512Vnni || isa == Isa::kAmxInt8;
    format_.tiles = isa == Isa::kAmxBf16 || isa == Isa::kAmxInt8;
    format_.pairs = format_.int8 || format_.tiles || isa == Isa::kAvx512Bf16;
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
    if (format_.int8) {
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
    if (format_.int8) FindMeans(first, heads, run_workers);
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
    if (format_.int8) {
      PackKeysInt8(format_, keys, key_mean_.get() + slot * format_.padded_size(), packed,
                   key_scale_.get() + slot * packed_keys_ + at);
    } else {
      PackKeys(format_, keys, packed);
    }
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
    if (format_.int8) {
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
                   format_.int8 ? work.query_scale.get() : nullptr};
    if (call_.bias != nullptr) {
      edit.bias = call_.bias + (head / call_.heads) * call_.bias_strides[0] +
                  (head % call_.heads) * call_.bias_strides[1];
    }
    if (call_.causal || edit.bias != nullptr) {
      job.edit = EditScores;
      job.edit_context = &edit;
    }
    kernel_(job, width);
    StoreTile(format_, job.out, job.sums, width, OutRows(head, queries));
  }

  Rows OutRows(int64_t head, Span queries) const {
    const View out{call_.out, call_.q_len * call_.heads * call_.head_size,
                   call_.heads * call_.head_size, call_.head_size};
    return RowsOf(out, head, plan_.query_order, queries);
  }

  const BlockSparseCall& call_;
  const BlockPlan& plan_;
  const TileKernel kernel_;
  UnitFormat format_;
  std::vector<int32_t> block_first_, block_length_;
  int64_t packed_keys_ = 0, key_units_ = 0, value_units_ = 0;
  Buffer<uint32_t> packed_;
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

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "AVX2";
    case Isa::kAvx512:
      return "AVX-512";
    case Isa::kAvx512Bf16:
      return "AVX-512 BF16";
    case Isa::kAvx512Vnni:
      return "AVX-512 VNNI";
    case Isa::kAmxBf16:
      return "AMX BF16";
    case Isa::kAmxInt8:
      return "AMX INT8";
  }
  return "unknown";
}

Isa BestIsa(Element element, const DeviceInfo& cpu, bool unmeasured) {
  if (element == Element::kBFloat16 && cpu.amx_bf16 && cpu.avx512_bf16 && unmeasured) {
    return Isa::kAmxBf16;
  }
  if (element == Element::kBFloat16 && cpu.avx512_bf16) return Isa::kAvx512Bf16;
  return cpu.avx512 ? Isa::kAvx512 : Isa::kAvx2;
}

Isa Int8Isa(const DeviceInfo& cpu, bool unmeasured) {
  return unmeasured && cpu.amx_bf16 && cpu.amx_int8 ? Isa::kAmxInt8 : Isa::kAvx512Vnni;
}

void BlockSparseAttention(const BlockSparseCall& call, const BlockPlan& plan, Isa isa,
                          const RunWorkers& run_workers, TileKernel kernel) {
  Runner(call, plan, isa, kernel != nullptr ? kernel : KernelOf(isa)).Run(run_workers);
}

}  // namespace denoised::kernels
