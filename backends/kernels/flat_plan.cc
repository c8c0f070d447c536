#include "backends/kernels/flat_plan.h"

#include <cstring>

namespace denoised::kernels {
namespace {

constexpr size_t kAlignment = 16;

std::vector<int32_t> TokensOf(const std::vector<Span>& blocks, const std::vector<int32_t>& order) {
  std::vector<int32_t> tokens(blocks.size() * kBlock, -1);
  for (size_t block = 0; block < blocks.size(); ++block) {
    for (int32_t i = 0; i < blocks[block].length; ++i) {
      const int32_t position = blocks[block].first + i;
      tokens[block * kBlock + i] = order.empty() ? position : order[position];
    }
  }
  return tokens;
}

std::vector<int32_t> LengthsOf(const std::vector<Span>& blocks) {
  std::vector<int32_t> lengths;
  for (const Span& block : blocks) lengths.push_back(block.length);
  return lengths;
}

template <class T>
const T* At(const void* base, size_t offset) {
  return reinterpret_cast<const T*>(static_cast<const std::byte*>(base) + offset);
}

}  // namespace

template <class T>
size_t FlatPlan::Append(const std::vector<T>& values) {
  const size_t offset = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
  bytes_.resize(offset + values.size() * sizeof(T));
  if (!values.empty()) {
    std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(T));
  }
  return offset;
}

FlatPlan FlatPlan::Flatten(const BlockPlan& plan) {
  FlatPlan flat;
  flat.counts_.query_blocks = static_cast<int64_t>(plan.query_blocks.size());
  flat.counts_.key_blocks = static_cast<int64_t>(plan.key_blocks.size());
  flat.counts_.lists = plan.lists;
  flat.query_tokens_ = flat.Append(TokensOf(plan.query_blocks, plan.query_order));
  flat.key_tokens_ = flat.Append(TokensOf(plan.key_blocks, plan.key_order));
  flat.key_lengths_ = flat.Append(LengthsOf(plan.key_blocks));
  flat.row_begin_ = flat.Append(plan.row_begin);
  flat.columns_ = flat.Append(plan.columns);
  if (!plan.row_masks.empty()) flat.row_masks_ = flat.Append(plan.row_masks);
  return flat;
}

FlatPlanView FlatPlan::ViewAt(const void* base) const {
  FlatPlanView view = counts_;
  view.query_tokens = At<int32_t>(base, query_tokens_);
  view.key_tokens = At<int32_t>(base, key_tokens_);
  view.key_lengths = At<int32_t>(base, key_lengths_);
  view.row_begin = At<int64_t>(base, row_begin_);
  view.columns = At<int32_t>(base, columns_);
  if (row_masks_ != kAbsent) view.row_masks = At<uint64_t>(base, row_masks_);
  return view;
}

}  // namespace denoised::kernels
