#include "backends/kernels/head_packs.h"

#include <immintrin.h>

#include <algorithm>
#include <thread>

#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

}  // namespace

Rows RowsOf(const BlockSparseCall& call, const View& view, int64_t head, const int32_t* order,
            Span span) {
  const int64_t offset =
      (head / call.heads) * view.batch_stride + (head % call.heads) * view.head_stride;
  const int64_t size = ElementBytes(call.element);
  return {static_cast<const char*>(view.data) + offset * size, view.token_stride, order, span};
}

Rows OutRowsOf(const BlockSparseCall& call, int64_t head, const int32_t* order, Span span) {
  const View out{call.out, call.q_len * call.heads * call.head_size, call.heads * call.head_size,
                 call.head_size};
  return RowsOf(call, out, head, order, span);
}

HeadPacks::HeadPacks(const BlockSparseCall& call, const std::vector<int32_t>& key_order,
                     const std::vector<Span>& key_blocks, const UnitFormat& format)
    : call_(call), key_order_(key_order), key_blocks_(key_blocks), format_(format) {
  for (const Span& block : key_blocks) {
    first_.push_back(static_cast<int32_t>(packed_keys_));
    length_.push_back(block.length);
    packed_keys_ += RoundUp(block.length, format_.key_group());
  }
  key_units_ = packed_keys_ * format_.score_units();
  value_units_ = packed_keys_ / format_.keys_per_unit() * format_.padded_size();
}

void HeadPacks::ForEachTurn(const RunWorkers& run_workers,
                            const std::function<void(int64_t first, int64_t heads)>& work) {
  const int64_t all = call_.batch * call_.heads;
  const int64_t turn = std::clamp<int64_t>(kMaxPackedUnits / (key_units_ + value_units_), 1, all);
  packed_ = Allocate<uint32_t>(turn * (key_units_ + value_units_));
  odd_.resize(turn * blocks());
  if (format_.int8()) {
    key_scale_ = Allocate<float>(turn * packed_keys_);
    key_mean_ = Allocate<float>(turn * format_.padded_size());
  }
  for (int64_t first = 0; first < all; first += turn) {
    const int64_t heads = std::min(turn, all - first);
    StopPoint();
    first_head_ = first;
    progress_ = std::vector<Progress>(heads);
    if (format_.int8()) FindMeans(first, heads, run_workers);
    work(first, heads);
  }
}

PackedHead HeadPacks::At(int64_t slot) {
  Complete(slot);
  return {Units(slot), Units(slot) + key_units_,
          key_scale_ ? key_scale_.get() + slot * packed_keys_ : nullptr, first_.data(),
          length_.data()};
}

Rows HeadPacks::RowsOfBlock(const View& view, int64_t head, int64_t block) const {
  return RowsOf(call_, view, head, key_order_.empty() ? nullptr : key_order_.data(),
                key_blocks_[block]);
}

// The mean key of each head, which int8 keys go without.
void HeadPacks::FindMeans(int64_t first, int64_t heads, const RunWorkers& run_workers) {
  TaskShares shares(heads);
  const Span all{0, static_cast<int32_t>(call_.kv_len)};
  run_workers(heads, [&](const Worker& worker) {
    for (int64_t slot; (slot = shares.Take(worker)) >= 0;) {
      MeanOfRows(format_, RowsOf(call_, call_.key, first + slot, nullptr, all),
                 key_mean_.get() + slot * format_.padded_size());
    }
  });
}

void HeadPacks::Complete(int64_t slot) {
  constexpr int kLooks = 256;  // before whoever packs the rest gets this processor
  Progress& progress = progress_[slot];
  const int64_t all = blocks();
  if (progress.packed.load(std::memory_order_acquire) == all) return;
  for (int64_t block; (block = progress.begun.fetch_add(1, std::memory_order_relaxed)) < all;) {
    PackBlock(slot, block);
    progress.packed.fetch_add(1, std::memory_order_release);
  }
  for (int look = 0; progress.packed.load(std::memory_order_acquire) < all; ++look) {
    look < kLooks ? _mm_pause() : std::this_thread::yield();
  }
}

void HeadPacks::PackBlock(int64_t slot, int64_t block) noexcept {
  const int64_t head = first_head_ + slot, at = first_[block];
  uint32_t* keys = Units(slot) + at * format_.score_units();
  const Rows rows = RowsOfBlock(call_.key, head, block);
  if (format_.int8()) {
    PackKeysInt8(format_, rows, key_mean_.get() + slot * format_.padded_size(), keys,
                 key_scale_.get() + slot * packed_keys_ + at);
  } else {
    PackKeys(format_, rows, keys);
  }
  uint32_t* values =
      Units(slot) + key_units_ + at / format_.keys_per_unit() * format_.padded_size();
  odd_[slot * blocks() + block] = PackValues(format_, ValuesOf(head, block), values);
}

TileDesk::TileDesk(HeadPacks& packs)
    : packs_(packs),
      query_(int64_t{packs.format().units()} * kMaxWidth),
      probs_(int64_t{kKeysPerPass} * kMaxWidth),
      out_(int64_t{packs.format().padded_size()} * kMaxWidth),
      max_(kMaxWidth),
      sums_(kMaxWidth),
      query_scale_(kMaxWidth),
      scores_((packs.format().tiles ? 2 : 1) * int64_t{kKeysPerPass} * kMaxWidth),
      query_offset_(kMaxWidth) {}

TileJob TileDesk::Begin(int64_t slot, const Rows& queries) {
  const UnitFormat& format = packs_.format();
  const TileJob job = Lay(slot, queries.span.length);
  if (format.int8()) {
    PackQueryInt8(format, queries, width_, query_.get(), query_scale_.get(), query_offset_.get());
  } else {
    PackQuery(format, queries, width_, query_.get());
  }
  return job;
}

TileJob TileDesk::Lay(int64_t slot, int rows) {
  width_ = rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  TileJob job{};
  job.head = packs_.At(slot);
  job.query = query_.get();
  job.query_scale = query_scale_.get();
  job.query_offset = query_offset_.get();
  job.units = packs_.format().score_units();
  job.padded_size = packs_.format().padded_size();
  job.scale_log2 = packs_.call().scale * kLog2E;
  job.rows = rows;
  job.max = max_.get();
  job.sums = sums_.get();
  job.out = out_.get();
  job.scores = scores_.get();
  job.probs = probs_.get();
  return job;
}

void TileDesk::Finish(const TileJob& job, float nothing, const Rows& out) const {
  StoreTile(packs_.format(), job.out, job.sums, width_, nothing, out);
}

}  // namespace denoised::kernels
