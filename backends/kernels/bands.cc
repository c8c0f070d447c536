#include "backends/kernels/bands.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "backends/kernels/head_packs.h"
#include "backends/kernels/lanes.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/kernels/variants.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();

// The running softmax of a band's queries, a row each.
class RunningRows {
 public:
  explicit RunningRows(int padded_size)
      : size_(padded_size),
        stride_((padded_size + 7) / 8 * 8),
        out_(kBandQueries * stride_),
        max_(kBandQueries),
        sums_(kBandQueries) {}

  void Reset(int64_t queries) {
    std::memset(out_.get(), 0, static_cast<size_t>(queries * stride_) * sizeof(float));
    std::fill_n(max_.get(), queries, -std::numeric_limits<float>::infinity());
    std::fill_n(sums_.get(), queries, 0.0f);
  }
  void Load(const int32_t* queries, int count, int width, const TileJob& job) const {
    RowsToLanes(out_.get(), stride_, queries, count, size_, width, job.out);
    for (int i = 0; i < width; ++i) {
      const int32_t query = queries[i < count ? i : 0];
      job.max[i] = max_[query];
      job.sums[i] = sums_[query];
    }
  }
  void Store(const int32_t* queries, int count, int width, const TileJob& job) {
    LanesToRows(job.out, width, size_, queries, count, stride_, out_.get());
    for (int i = 0; i < count; ++i) {
      max_[queries[i]] = job.max[i];
      sums_[queries[i]] = job.sums[i];
    }
  }
  float* Row(int64_t query) { return out_.get() + query * stride_; }

 private:
  const int size_;
  const int64_t stride_;
  const ThreadBuffer<float> out_, max_, sums_;
};

// What a thread keeps from band to band.
struct BandDesk {
  explicit BandDesk(HeadPacks& packs) : desk(packs) {}
  TileDesk desk;
  std::unique_ptr<RunningRows> running;  // once a band has rows
  Band band;
  std::vector<int32_t> members, tokens;  // of a step: by place in the band, and as tokens
};

class BandRunner {
 public:
  BandRunner(const BlockSparseCall& call, const BandMaker& bands, const UnitFormat& format,
             TileKernel kernel)
      : call_(call),
        bands_(bands),
        packs_(call, bands.keys().order, bands.keys().blocks, format),
        kernel_(kernel) {}

  void Run(const RunWorkers& run_workers) {
    packs_.ForEachTurn(run_workers, [&](int64_t first, int64_t heads) {
      const int64_t a_head = bands_.bands(), tasks = heads * a_head;
      TaskShares shares(tasks);
      SharedStop stop;
      run_workers(tasks, [&](const Worker& worker) {
        BandDesk desk(packs_);
        for (int64_t i; (i = shares.Take(worker)) >= 0;) {
          if (stop.Asked()) return;
          RunBand(first + i / a_head, i / a_head, i % a_head, &desk);
        }
      });
      stop.ThrowIfAsked();
    });
  }

 private:
  void RunBand(int64_t head, int64_t slot, int64_t index, BandDesk* own) {
    own->band.Clear();
    bands_.Make(head, index, &own->band);
    if (own->band.alike()) {
      RunAlike(head, slot, own);
    } else {
      RunGathered(head, slot, own);
    }
    for (const Band::Copy& copy : own->band.copies) CopyRow(head, copy);
  }

  // All queries attend the same blocks: tiles straight into the result.
  void RunAlike(int64_t head, int64_t slot, BandDesk* own) {
    const Band& band = own->band;
    const int32_t count = static_cast<int32_t>(band.queries.size());
    for (int32_t first = 0; first < count; first += kBlock) {
      const Span span{first, std::min<int32_t>(kBlock, count - first)};
      const int32_t* order = band.queries.data();
      TileJob job = own->desk.Begin(slot, RowsOf(call_, call_.query, head, order, span));
      job.blocks = band.columns.data();
      job.num_blocks = static_cast<int>(band.columns.size());
      const int width = own->desk.width();
      kernel_(job, width);
      for (const int32_t block : band.columns) {
        ForEachOddValue(head, slot, block, [&](int d, float value) {
          for (int q = 0; q < job.rows; ++q) job.out[d * width + q] += value;
        });
      }
      // Only scores that are all -inf leave a sum of 0.
      own->desk.Finish(job, band.columns.empty() ? 0.0f : kNoNumber,
                       OutRowsOf(call_, head, order, span));
    }
  }

  void RunGathered(int64_t head, int64_t slot, BandDesk* own) {
    const Band& band = own->band;
    const int64_t queries = static_cast<int64_t>(band.queries.size());
    if (!own->running) {
      own->running = std::make_unique<RunningRows>(packs_.format().padded_size());
    }
    own->running->Reset(queries);
    for (int64_t step = 0; step < band.steps(); ++step) {
      FindMembers(step, own);
      const int count = static_cast<int>(own->members.size());
      for (int first = 0; first < count; first += kBlock) {
        RunMembers(head, slot, step, first, std::min(kBlock, count - first), own);
      }
    }
    for (int64_t step = 0; step < band.steps(); ++step) AddOddValues(head, slot, step, own);
    StoreBand(head, slot, own);
  }

  // The queries that attend a step, ascending.
  static void FindMembers(int64_t step, BandDesk* own) {
    const Band& band = own->band;
    own->members.clear();
    own->tokens.clear();
    for (int64_t word = 0; word < band.words(); ++word) {
      for (uint64_t bits = band.rows[step * band.words() + word]; bits != 0; bits &= bits - 1) {
        const int32_t query = static_cast<int32_t>(word * 64 + std::countr_zero(bits));
        own->members.push_back(query);
        own->tokens.push_back(band.queries[query]);
      }
    }
  }

  void RunMembers(int64_t head, int64_t slot, int64_t step, int first, int count, BandDesk* own) {
    const Band& band = own->band;
    TileJob job =
        own->desk.Begin(slot, RowsOf(call_, call_.query, head, own->tokens.data(), {first, count}));
    const int width = own->desk.width();
    job.resume = true;
    job.blocks = band.columns.data() + band.step_begin[step];
    job.num_blocks = band.step_begin[step + 1] - band.step_begin[step];
    own->running->Load(own->members.data() + first, count, width, job);
    kernel_(job, width);
    own->running->Store(own->members.data() + first, count, width, job);
  }

  // At the end, so that no later step shrinks them.
  void AddOddValues(int64_t head, int64_t slot, int64_t step, BandDesk* own) {
    const Band& band = own->band;
    for (int32_t i = band.step_begin[step]; i < band.step_begin[step + 1]; ++i) {
      ForEachOddValue(head, slot, band.columns[i], [&](int d, float value) {
        for (size_t query = 0; query < band.queries.size(); ++query) {
          if (band.Attends(step, static_cast<int64_t>(query))) {
            own->running->Row(static_cast<int64_t>(query))[d] += value;
          }
        }
      });
    }
  }

  void StoreBand(int64_t head, int64_t slot, BandDesk* own) {
    const Band& band = own->band;
    const int32_t count = static_cast<int32_t>(band.queries.size());
    own->members.resize(count);
    for (int32_t i = 0; i < count; ++i) own->members[i] = i;
    for (int32_t first = 0; first < count; first += kBlock) {
      const Span span{first, std::min<int32_t>(kBlock, count - first)};
      const int32_t* order = band.queries.data();
      const TileJob job = own->desk.Lay(slot, span.length);
      own->running->Load(own->members.data() + first, span.length, own->desk.width(), job);
      own->desk.Finish(job, kNoNumber, OutRowsOf(call_, head, order, span));
    }
  }

  template <class Add>
  void ForEachOddValue(int64_t head, int64_t slot, int64_t block, const Add& add) {
    if (!packs_.IsOdd(slot, block)) return;
    const Rows rows = packs_.ValuesOf(head, block);
    for (int k = 0; k < rows.span.length; ++k) {
      float value[kMaxHeadSize];
      LoadValue(packs_.format(), rows, k, value);
      for (int d = 0; d < packs_.format().head_size; ++d) {
        if (!std::isfinite(value[d])) add(d, value[d]);
      }
    }
  }

  void CopyRow(int64_t head, const Band::Copy& copy) {
    const int64_t bytes = call_.head_size * ElementBytes(call_.element);
    const Rows rows = OutRowsOf(call_, head, nullptr, {});
    char* out = static_cast<char*>(const_cast<void*>(rows.data));
    const int64_t stride = rows.stride * (bytes / call_.head_size);
    std::memcpy(out + copy.to * stride, out + copy.from * stride, static_cast<size_t>(bytes));
  }

  const BlockSparseCall& call_;
  const BandMaker& bands_;
  HeadPacks packs_;
  const TileKernel kernel_;
};

}  // namespace

void Band::Clear() {
  queries.clear();
  columns.clear();
  step_begin.clear();
  rows.clear();
  copies.clear();
}

void BandAttention(const BlockSparseCall& call, const BandMaker& bands, Isa isa,
                   const RunWorkers& run_workers, TileKernel kernel) {
  const Variant& variant = VariantOf(isa);
  BandRunner(call, bands, FormatOf(variant, call), kernel != nullptr ? kernel : variant.kernel)
      .Run(run_workers);
}

}  // namespace denoised::kernels
