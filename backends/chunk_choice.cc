#include "backends/chunk_choice.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "backends/cpu_isa.h"
#include "backends/intra_op.h"
#include "backends/kernels/gates.h"
#include "backends/kernels/share_choice.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

constexpr int64_t kRun = kernels::kGateLanes;  // queries whose gates are held at once
constexpr float kOwnChunk = 1e9f;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr double kFixedPoint = 1 << 30;  // stretched gates are summed exactly, in any order

const kernels::GateKernels& Gates() {
  static const kernels::GateKernels& gates = kernels::GateKernelsOf(QueryCpu());
  return gates;
}

std::vector<kernels::Buffer<float>> PackedMeans(const SparseCall& call, const Partition& chunks) {
  std::vector<kernels::Buffer<float>> packed;
  std::vector<std::vector<float>> heads = MeansOfHeads(call, call.host_key, chunks);
  for (std::vector<float>& means : heads) {
    packed.push_back(
        kernels::Allocate<float>(kernels::PaddedChunks(chunks.blocks()) * call.head_size()));
    kernels::PackMeans(means.data(), chunks.blocks(), call.head_size(), packed.back().get());
    std::vector<float>().swap(means);  // one copy of all at a time
  }
  return packed;
}

}  // namespace

struct ChunkChoice::Desk {
  Desk(int64_t chunks, int64_t head_size)
      : queries(kRun * head_size),
        gates(kRun * kernels::PaddedChunks(chunks)),
        share(Gates(), chunks) {}
  const kernels::ThreadBuffer<float> queries, gates;
  kernels::ShareChoice share;
  std::vector<float> row;
  kernels::ChoiceScratch scratch;
  std::vector<int32_t> most;
};

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
      means_(PackedMeans(call, chunks)) {
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

int64_t ChunkChoice::ChooseBytes(int64_t chunks, int64_t head_size) {
  constexpr int64_t kMostBytes = 4 + 4 + 2 * 8;  // of a chunk, where the largest are chosen
  return kRun * 4 * (head_size + kernels::PaddedChunks(chunks)) +
         kernels::ShareChoice::Bytes(chunks) + chunks * kMostBytes;
}

// Rows of queries lie a page or so apart, so that reading them is waiting for memory, one after the
// other; a few at a time between products they cost nothing.
void ChunkChoice::FillGates(int64_t head, int64_t first, int64_t count, int64_t soon,
                            Desk* desk) const {
  constexpr int64_t kStep = kernels::kGroup;
  const int64_t size = call_.head_size();
  const kernels::HeadRows rows = call_.Rows(call_.host_query, head);
  kernels::PackQueries(rows, cut_.order.data() + first, static_cast<int>(count),
                       desk->queries.get());
  int64_t fetched = 0;
  for (int64_t chunk = 0; chunk < chunks_; chunk += kStep) {
    for (; fetched < std::min(soon, soon * (chunk + kStep) / chunks_); ++fetched) {
      kernels::PrefetchRow(rows, cut_.order[first + count + fetched]);
    }
    Gates().multiply(means_[head].get() + chunk * size, desk->queries.get(),
                     std::min(kStep, chunks_ - chunk), size, desk->gates.get() + chunk * kRun);
  }
}

void ChunkChoice::ForAllQueries(int64_t batch, const Visit& visit) const {
  const int64_t runs = (call_.tokens() + kRun - 1) / kRun, tasks = call_.heads() * runs;
  SharedStop stop;
  ParallelFor(kParts, 1, [&](int64_t begin, int64_t end) {
    Desk desk(chunks_, call_.head_size());
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t task = part; task < tasks && !stop.Asked(); task += kParts) {
        const int64_t head = batch * call_.heads() + task / runs, first = task % runs * kRun;
        const int64_t count = std::min(kRun, call_.tokens() - first);
        FillGates(head, first, count, 0, &desk);
        visit(part, head, first, count, desk.gates.get());
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
  ForAllQueries(batch, [&](int64_t part, int64_t head, int64_t, int64_t count, const float* gates) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      Cut& cut = parts[part][GroupOf(head, chunk)];
      for (int64_t i = 0; i < count; ++i) {
        const float gate = gates[chunk * kRun + i];
        cut.low = std::min(cut.low, gate);
        cut.high = std::max(cut.high, gate);
        cut.all = cut.all || !std::isfinite(gate);
      }
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
  ForAllQueries(batch,
                [&](int64_t part, int64_t head, int64_t first, int64_t count, const float* gates) {
                  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                    const int64_t group = GroupOf(head, chunk);
                    if (cuts[group].all) continue;
                    for (int64_t i = 0; i < count; ++i) {
                      CountEntry(cuts[group], shift, gates[chunk * kRun + i], group,
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

void ChunkChoice::ChooseByCut(int64_t head, const int32_t* own, int64_t count, const float* gates,
                              uint64_t* chosen, int64_t stride) const {
  const std::vector<Cut>& cuts = cuts_[head / call_.heads()];
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const Cut& cut = cuts[GroupOf(head, chunk)];
    uint64_t bits = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool is_own = own[i] == chunk;
      const float value = ValueOf(cut, gates[chunk * kRun + i], is_own);
      const bool stays = is_own || cut.all || kernels::KeyOf(value) >= cut.least_key;
      bits |= uint64_t{stays} << i;
    }
    chosen[chunk * stride] = bits;
  }
}

// The top_k largest of each query, its own chunk first.
void ChunkChoice::ChooseMost(const int32_t* own, int64_t count, Desk* desk, uint64_t* chosen,
                             int64_t stride) const {
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) chosen[chunk * stride] = 0;
  desk->row.resize(chunks_);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      desk->row[chunk] = desk->gates[chunk * kRun + i];
    }
    desk->row[own[i]] += kOwnChunk;
    desk->most.assign(1, own[i]);
    kernels::ChooseLargest(desk->row.data(), chunks_, rule_.top_k, &desk->scratch, &desk->most);
    for (const int32_t chunk : desk->most) chosen[chunk * stride] |= uint64_t{1} << i;
  }
}

void ChunkChoice::ChooseRun(int64_t head, int64_t first, int64_t count, int64_t soon, Desk* desk,
                            uint64_t* chosen, int64_t stride) const {
  FillGates(head, first, count, soon, desk);
  const int32_t* own = chunk_of_.data() + first;
  if (rule_.type != SelectType::kQueryHead) {
    ChooseByCut(head, own, count, desk->gates.get(), chosen, stride);
  } else if (rule_.by_threshold) {
    desk->share.Run(desk->gates.get(), static_cast<int>(count), own, rule_.threshold, chosen,
                    stride);
  } else {
    ChooseMost(own, count, desk, chosen, stride);
  }
}

void ChunkChoice::Choose(int64_t head, int64_t first, int64_t count, uint64_t* chosen) const {
  Desk desk(chunks_, call_.head_size());
  const int64_t words = (count + kRun - 1) / kRun;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t done = word * kRun, run = std::min(kRun, count - done);
    const int64_t soon = std::min(kRun, count - done - run);
    ChooseRun(head, first + done, run, soon, &desk, chosen + word, words);
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
    std::vector<uint64_t> chosen(chunks_);
    Desk desk(chunks_, call_.head_size());
    for (int64_t task = begin; task < end && !any && !stop.Asked(); ++task) {
      const int64_t first = task % runs * kRun, count = std::min(kRun, call_.tokens() - first);
      ChooseRun(batch * call_.heads() + task / runs, first, count, 0, &desk, chosen.data(), 1);
      int64_t pairs = 0;
      for (const uint64_t queries : chosen) pairs += std::popcount(queries);
      if (pairs > count) any = true;  // each has its own chunk
    }
  });
  stop.ThrowIfAsked();
  return any;
}

}  // namespace denoised
