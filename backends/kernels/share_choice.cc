#include "backends/kernels/share_choice.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

namespace denoised::kernels {
namespace {

// So many that one or two of normally distributed values lie between a floor and the next.
int DigitsFor(int64_t chunks) {
  return std::clamp(static_cast<int>(std::bit_width(static_cast<uint64_t>(chunks))) - 1, 1, 16);
}

}  // namespace

ShareChoice::ShareChoice(const GateKernels& kernels, int64_t chunks)
    : kernels_(kernels), chunks_(chunks), digits_(DigitsFor(chunks)), within_(chunks) {}

int64_t ShareChoice::Bytes(int64_t chunks) {
  constexpr int64_t kRowBytes = 4 + 4 + 4 + 8;  // row_, alone_, and two of scratch_
  return static_cast<int64_t>(sizeof(ShareChoice)) + chunks * (8 + 2 * kRowBytes);
}

void ShareChoice::Run(float* gates, int count, const int32_t* own, double share, uint64_t* chosen,
                      int64_t stride) {
  kernels_.stretch(gates, chunks_, totals_.data());
  Measure(gates, count, own, share);
  kernels_.find_floors(gates, chunks_, wanted_.data(), digits_, floors_.data());
  FindCeilings();
  kernels_.split(gates, chunks_, floors_.data(), ceilings_.data(), chosen, stride, within_.get(),
                 sums_.data());
  const uint64_t everyone = ~uint64_t{0} >> (kGateLanes - count);
  ListWithin(gates, everyone);
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) chosen[chunk * stride] &= everyone;
  for (int query = 0; query < count; ++query) {
    chosen[own[query] * stride] |= uint64_t{1} << query;
    if (!TakeWithin(gates, query, chosen, stride)) {
      ChooseAlone(gates, query, own[query], share, chosen, stride);
    }
  }
}

// Own chunks take no part from here on: -1 is below every floor.
void ShareChoice::Measure(float* gates, int count, const int32_t* own, double share) {
  for (int query = 0; query < kGateLanes; ++query) {
    float* at = gates + own[query < count ? query : 0] * kGateLanes + query;
    own_value_[query] = std::exchange(*at, -1.0f);
    needed_[query] = share * (totals_[query] + 1e-6) - own_value_[query];
    wanted_[query] = static_cast<float>(needed_[query]);
  }
}

void ShareChoice::FindCeilings() {
  const float step = std::ldexp(1.0f, -digits_);
  for (int query = 0; query < kGateLanes; ++query) {
    const float next = floors_[query] + step;
    ceilings_[query] = next < 1 ? next : std::numeric_limits<float>::infinity();
  }
}

void ShareChoice::ListWithin(const float* gates, uint64_t queries) {
  entries_.fill(0);
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    for (uint64_t bits = within_[chunk] & queries; bits != 0; bits &= bits - 1) {
      const int query = std::countr_zero(bits);
      uint8_t& entries = entries_[query];
      if (entries >= kMostWithin) {
        entries = kTooMany;
        continue;
      }
      entry_[query][entries++] = Sortable(KeyOf(gates[chunk * kGateLanes + query]), chunk);
    }
  }
}

// What lies within, in falling order, until the share is held. False: the query is an odd one, or
// the floor is not its own.
bool ShareChoice::TakeWithin(const float* gates, int query, uint64_t* chosen, int64_t stride) {
  const double needed = needed_[query];
  double sum = sums_[query];
  if (!(needed > 0) || sum >= needed || entries_[query] == kTooMany) return false;
  // Some of a few are wanted: not worth a sort.
  const auto end = entry_[query].begin() + entries_[query];
  for (auto left = entry_[query].begin(); left != end; ++left) {
    std::iter_swap(left, std::max_element(left, end));
    const int64_t chunk = IndexOf(*left);
    chosen[chunk * stride] |= uint64_t{1} << query;
    sum += gates[chunk * kGateLanes + query];
    if (sum >= needed) return true;
  }
  return floors_[query] == 0;  // all are taken
}

void ShareChoice::ChooseAlone(const float* gates, int query, int32_t own, double share,
                              uint64_t* chosen, int64_t stride) {
  row_.resize(chunks_);
  const uint64_t bit = uint64_t{1} << query;
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    row_[chunk] = gates[chunk * kGateLanes + query];
    chosen[chunk * stride] &= ~bit;
  }
  row_[own] = own_value_[query];
  alone_.assign(1, own);
  ChooseShare(row_.data(), chunks_, own, totals_[query], share, &scratch_, &alone_);
  for (const int32_t chunk : alone_) chosen[chunk * stride] |= bit;
}

}  // namespace denoised::kernels
