#include "backends/chunk_choice.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "backends/intra_op.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

constexpr int64_t kRun = 64;  // queries whose gates are held at once
constexpr float kOwnChunk = 1e9f;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr double kFixedPoint = 1 << 30;  // stretched gates are summed exactly, in any order

}  // namespace

// Of entries that agree with the cut so far: how many have each next digit, and what they weigh
// together (in fixed point, so that the order of adding does not matter).
struct ChunkChoice::Histogram {
  std::vector<uint64_t> count, weight;  // [group][digit]
  std::vector<uint64_t> own;            // [group]: sum of own chunks
  explicit Histogram(int64_t groups)
      : count(groups * kDigits, 0), weight(groups * kDigits, 0), own(groups, 0) {}
  void Add(const Histogram& other) {
    const auto add = [](std::vector<uint64_t>* to, const std::vector<uint64_t>& from) {
      for (size_t i = 0; i < to->size(); ++i) (*to)[i] += from[i];
    };
    add(&count, other.count);
    add(&weight, other.weight);
    add(&own, other.own);
  }
};

ChunkChoice::ChunkChoice(const SparseCall& call, const Partition& chunks,
                         const std::vector<int32_t>& chunk_of, const ChunkRule& rule)
    : call_(call),
      cut_(chunks),
      chunk_of_(chunk_of),
      rule_(rule),
      chunks_(chunks.blocks()),
      means_(MeansOfHeads(call, call.host_key, chunks)) {
  if (rule.type == SelectType::kQueryHead) return;
  cuts_.resize(call.batch());
  for (int64_t batch = 0; batch < call.batch(); ++batch) FindCuts(batch, &cuts_[batch]);
}

int64_t ChunkChoice::GroupsOf(const ChunkRule& rule, int64_t chunks, int64_t heads) {
  switch (rule.type) {
    case SelectType::kHeadGlobal:
      return heads;
    case SelectType::kBlock:
      return chunks;
    default:
      return 1;
  }
}

int64_t ChunkChoice::CutBytes(const ChunkRule& rule, int64_t chunks, int64_t heads) {
  if (rule.type == SelectType::kQueryHead) return 0;
  return (kParts + 1) * GroupsOf(rule, chunks, heads) * (kDigits * 16 + 64);
}

int64_t ChunkChoice::GroupOf(int64_t head, int64_t chunk) const {
  switch (rule_.type) {
    case SelectType::kHeadGlobal:
      return head % call_.heads();
    case SelectType::kBlock:
      return chunk;
    default:
      return 0;
  }
}

void ChunkChoice::FillGates(int64_t head, int64_t first, int64_t count,
                            std::vector<float>* gates) const {
  const int64_t size = call_.head_size();
  const kernels::HeadRows rows = call_.Rows(call_.host_query, head);
  std::vector<float> queries(count * size);
  for (int64_t i = 0; i < count; ++i) {
    kernels::LoadRow(rows, cut_.order[first + i], queries.data() + i * size);
  }
  gates->resize(count * chunks_);
  kernels::Products(queries.data(), count, means_[head].data(), chunks_, size, gates->data());
}

void ChunkChoice::ForAllQueries(int64_t batch, const Visit& visit) const {
  const int64_t runs = (call_.tokens() + kRun - 1) / kRun, tasks = call_.heads() * runs;
  SharedStop stop;
  ParallelFor(kParts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> gates;
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t task = part; task < tasks && !stop.Asked(); task += kParts) {
        const int64_t head = batch * call_.heads() + task / runs, first = task % runs * kRun;
        const int64_t count = std::min(kRun, call_.tokens() - first);
        FillGates(head, first, count, &gates);
        visit(part, head, first, count, gates);
      }
    }
  });
  stop.ThrowIfAsked();
}

float ChunkChoice::ValueOf(const Cut& cut, float gate, bool own) const {
  if (!rule_.by_threshold) return own ? gate + kOwnChunk : gate;
  const float range = cut.high - cut.low;
  return (gate - cut.low) / (range <= 1e-6f ? 1.0f : range);
}

void ChunkChoice::FindRanges(int64_t batch, std::vector<Cut>* cuts) const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<std::vector<Cut>> parts(kParts, std::vector<Cut>(Groups(), {kInfinity, -kInfinity}));
  ForAllQueries(batch, [&](int64_t part, int64_t head, int64_t, int64_t count,
                           const std::vector<float>& gates) {
    for (int64_t i = 0; i < count * chunks_; ++i) {
      Cut& cut = parts[part][GroupOf(head, i % chunks_)];
      cut.low = std::min(cut.low, gates[i]);
      cut.high = std::max(cut.high, gates[i]);
      cut.all = cut.all || !std::isfinite(gates[i]);
    }
  });
  *cuts = parts[0];
  for (const auto& part : parts) {
    for (size_t group = 0; group < part.size(); ++group) {
      Cut& cut = (*cuts)[group];
      cut.low = std::min(cut.low, part[group].low);
      cut.high = std::max(cut.high, part[group].high);
      cut.all = cut.all || part[group].all;
    }
  }
  // A range that overflows tells nothing apart.
  for (Cut& cut : *cuts)
    cut.all = rule_.by_threshold && (cut.all || std::isinf(cut.high - cut.low));
}

void ChunkChoice::CountEntry(const Cut& cut, int shift, float gate, int64_t group, bool own,
                             Histogram* histogram) const {
  const float value = ValueOf(cut, gate, own);
  const uint64_t weight = rule_.by_threshold ? static_cast<uint64_t>(value * kFixedPoint + 0.5) : 1;
  if (own && rule_.by_threshold) {
    histogram->own[group] += weight;
    return;
  }
  const uint64_t key = kernels::KeyOf(value);
  if ((key >> (shift + kDigitBits)) != (uint64_t{cut.least_key} >> (shift + kDigitBits))) return;
  const int64_t at = group * kDigits + ((key >> shift) & (kDigits - 1));
  histogram->count[at] += 1;
  histogram->weight[at] += weight;
}

ChunkChoice::Histogram ChunkChoice::CountDigits(int64_t batch, const std::vector<Cut>& cuts,
                                                int shift) const {
  std::vector<Histogram> parts(kParts, Histogram(Groups()));
  ForAllQueries(batch, [&](int64_t part, int64_t head, int64_t first, int64_t count,
                           const std::vector<float>& gates) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const int64_t group = GroupOf(head, chunk);
        if (cuts[group].all) continue;
        CountEntry(cuts[group], shift, gates[i * chunks_ + chunk], group,
                   chunk_of_[first + i] == chunk, &parts[part]);
      }
    }
  });
  for (int64_t part = 1; part < kParts; ++part) parts[0].Add(parts[part]);
  return parts[0];
}

double ChunkChoice::WantedOf(const Histogram& histogram, int64_t group) const {
  if (!rule_.by_threshold) {
    const int64_t members = chunks_ * call_.heads() * call_.tokens() / Groups();
    return static_cast<double>(std::min(rule_.top_k, chunks_) * members / chunks_);
  }
  const double own = static_cast<double>(histogram.own[group]);
  double whole = own + 1e-6 * kFixedPoint;
  for (int digit = 0; digit < kDigits; ++digit) {
    whole += static_cast<double>(histogram.weight[group * kDigits + digit]);
  }
  return rule_.threshold * whole - own;
}

void ChunkChoice::FindCuts(int64_t batch, std::vector<Cut>* cuts) const {
  FindRanges(batch, cuts);
  std::vector<uint64_t> above(Groups(), 0);  // what the entries above the cut so far weigh
  std::vector<double> wanted(Groups(), 0);
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    const Histogram histogram = CountDigits(batch, *cuts, shift);
    for (int64_t group = 0; group < Groups(); ++group) {
      if (shift == 32 - kDigitBits) wanted[group] = WantedOf(histogram, group);
      const int digit = CutDigit(histogram, group, wanted[group], &above[group]);
      (*cuts)[group].least_key |= static_cast<uint32_t>(digit) << shift;
    }
  }
}

// The highest digit with whose entries the wanted is reached, else the lowest that there is.
int ChunkChoice::CutDigit(const Histogram& histogram, int64_t group, double wanted,
                          uint64_t* above) {
  const uint64_t* count = histogram.count.data() + group * kDigits;
  const uint64_t* weight = histogram.weight.data() + group * kDigits;
  int cut = 0;
  uint64_t before = *above, sum = *above;
  for (int digit = kDigits - 1; digit >= 0; --digit) {
    if (count[digit] == 0) continue;
    cut = digit;
    before = sum;
    sum += weight[digit];
    if (static_cast<double>(sum) >= wanted) break;
  }
  *above = before;
  return cut;
}

void ChunkChoice::ChooseByCut(int64_t head, int64_t own, const float* gates,
                              std::vector<int32_t>* chosen) const {
  const std::vector<Cut>& cuts = cuts_[head / call_.heads()];
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const Cut& cut = cuts[GroupOf(head, chunk)];
    const float value = ValueOf(cut, gates[chunk], chunk == own);
    if (chunk == own || cut.all || kernels::KeyOf(value) >= cut.least_key) {
      chosen->push_back(static_cast<int32_t>(chunk));
    }
  }
}

void ChunkChoice::ForQueries(int64_t head, int64_t first, int64_t count, const Emit& emit) const {
  std::vector<float> gates;
  FillGates(head, first, count, &gates);
  kernels::ChoiceScratch scratch;
  std::vector<int32_t> chosen;
  for (int64_t i = 0; i < count; ++i) {
    float* row = gates.data() + i * chunks_;
    const int32_t own = chunk_of_[first + i];
    chosen.clear();
    if (rule_.type != SelectType::kQueryHead) {
      ChooseByCut(head, own, row, &chosen);
    } else {
      chosen.push_back(own);
      if (rule_.by_threshold) {
        const double total = kernels::StretchRow(row, chunks_);
        kernels::ChooseShare(row, chunks_, own, total, rule_.threshold, &scratch, &chosen);
      } else {
        row[own] += kOwnChunk;
        kernels::ChooseLargest(row, chunks_, rule_.top_k, &scratch, &chosen);
      }
    }
    emit(i, chosen);
  }
}

bool ChunkChoice::AnyExtra(int64_t batch) const {
  if (chunks_ == 1) return false;
  // One at least beside its own for each group, or more than there are own chunks.
  if (rule_.by_threshold || rule_.top_k > 1) return true;
  const int64_t runs = (call_.tokens() + kRun - 1) / kRun;
  std::atomic<bool> any{false};
  SharedStop stop;
  ParallelFor(call_.heads() * runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end && !any && !stop.Asked(); ++task) {
      const int64_t first = task % runs * kRun;
      ForQueries(batch * call_.heads() + task / runs, first, std::min(kRun, call_.tokens() - first),
                 [&](int64_t i, const std::vector<int32_t>& chosen) {
                   for (const int32_t chunk : chosen) {
                     if (chunk != chunk_of_[first + i]) any = true;
                   }
                 });
    }
  });
  stop.ThrowIfAsked();
  return any;
}

}  // namespace denoised
