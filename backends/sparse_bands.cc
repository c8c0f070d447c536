#include "backends/sparse_bands.h"

#include <algorithm>
#include <numeric>

namespace denoised {
namespace {

using kernels::Band;
using kernels::BlockPlan;

Band MakeBand(const SparseBands& bands, int64_t head, int64_t index) {
  Band band;
  bands.Make(head, index, &band);
  if (band.alike()) band.step_begin = {0, static_cast<int32_t>(band.columns.size())};
  return band;
}

// Up to 64 queries of a band as a row of the plan.
void AddRun(const Band& band, int64_t run, BlockPlan* plan) {
  const int64_t left = static_cast<int64_t>(band.queries.size()) - run * 64;
  const uint64_t everyone = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
  for (int64_t step = 0; step < band.steps(); ++step) {
    const uint64_t mask = band.alike() ? everyone : band.rows[step * band.words() + run];
    if (mask == 0) continue;
    for (int32_t i = band.step_begin[step]; i < band.step_begin[step + 1]; ++i) {
      plan->columns.push_back(band.columns[i]);
      plan->row_masks.push_back(mask);
    }
  }
  plan->row_begin.push_back(static_cast<int64_t>(plan->columns.size()));
}

void AddQueries(const Band& band, BlockPlan* plan) {
  const int32_t count = static_cast<int32_t>(band.queries.size());
  const int32_t at = static_cast<int32_t>(plan->query_order.size());
  plan->query_order.insert(plan->query_order.end(), band.queries.begin(), band.queries.end());
  for (int32_t first = 0; first < count; first += kernels::kBlock) {
    plan->query_blocks.push_back({at + first, std::min<int32_t>(kernels::kBlock, count - first)});
  }
  if (!band.copies.empty()) plan->covers_queries = false;
}

}  // namespace

RowGeometry::RowGeometry(const Partition& queries_cut, const Partition& keys_cut)
    : queries(queries_cut), keys(keys_cut) {
  constexpr int32_t kMost = static_cast<int32_t>(kernels::kBandQueries);
  int32_t position = 0;
  for (size_t block = 0; block < queries.lengths.size(); ++block) {
    const int32_t length = queries.lengths[block];
    for (int32_t done = 0; done < length; done += kMost) {
      pieces.push_back(
          {static_cast<int32_t>(block), position + done, std::min(kMost, length - done)});
    }
    position += length;
  }
}

void RowBands::Make(int64_t head, int64_t band, Band* out) const {
  const RowGeometry::Piece& piece = geometry_->pieces[band];
  const auto first = geometry_->queries.order.begin() + piece.first;
  out->queries.assign(first, first + piece.length);
  kernels::ChoiceScratch scratch;
  std::vector<int32_t> chosen;
  ChooseRow(head, piece.block, &scratch, &chosen);
  for (const int32_t block : chosen) geometry_->keys.Append(block, &out->columns);
}

BlockPlan PlanOfBands(const SparseBands& bands, int64_t first, int64_t heads) {
  BlockPlan plan;
  plan.key_order = bands.keys().order;
  plan.key_blocks = bands.keys().blocks;
  plan.lists = bands.common() == SparseBands::Common::kAll ? 1 : heads;
  plan.row_begin = {0};
  bool alike = true;
  for (int64_t head = first; head < first + plan.lists; ++head) {
    for (int64_t index = 0; index < bands.bands(); ++index) {
      const Band band = MakeBand(bands, head, index);
      if (head == first) AddQueries(band, &plan);
      for (int64_t run = 0; run < band.words(); ++run) AddRun(band, run, &plan);
      alike = alike && band.alike();
    }
  }
  if (alike) plan.row_masks.clear();
  return plan;
}

std::vector<int64_t> SourcesOfBands(const SparseBands& bands, int64_t head, int64_t tokens) {
  std::vector<int64_t> source(tokens);
  std::iota(source.begin(), source.end(), 0);
  for (int64_t index = 0; index < bands.bands(); ++index) {
    for (const Band::Copy& copy : MakeBand(bands, head, index).copies) source[copy.to] = copy.from;
  }
  return source;
}

at::Tensor PairsOfBands(const SparseBands& bands, int64_t batch, int64_t heads, int64_t q_len,
                        int64_t kv_len) {
  at::Tensor pairs = at::zeros({batch * heads, q_len, kv_len}, at::kBool);
  auto cell = pairs.accessor<bool, 3>();
  const kernels::KeyCut& keys = bands.keys();
  const auto mark = [&](int64_t head, int64_t query, kernels::Span span) {
    for (int32_t k = span.first; k < span.first + span.length; ++k) {
      cell[head][query][keys.order.empty() ? k : keys.order[k]] = true;
    }
  };
  for (int64_t head = 0; head < batch * heads; ++head) {
    for (int64_t index = 0; index < bands.bands(); ++index) {
      const Band band = MakeBand(bands, head, index);
      for (int64_t step = 0; step < band.steps(); ++step) {
        for (size_t query = 0; query < band.queries.size(); ++query) {
          if (!band.Attends(step, static_cast<int64_t>(query))) continue;
          for (int32_t i = band.step_begin[step]; i < band.step_begin[step + 1]; ++i) {
            mark(head, band.queries[query], keys.blocks[band.columns[i]]);
          }
        }
      }
    }
  }
  return pairs.view({batch, heads, q_len, kv_len});
}

}  // namespace denoised
