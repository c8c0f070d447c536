// WanTransformer: what a prompt is to it.
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/models/wan_transformer.h"

namespace denoised {
namespace {

// Of each row of x [B, L, D], dense: the first token from which on all have the last one's bits.
std::vector<int64_t> AlikeFrom(const at::Tensor& x) {
  std::vector<int64_t> from;
  const int64_t length = x.size(1);
  const size_t bytes = static_cast<size_t>(x.size(2) * x.element_size());
  const char* row = static_cast<const char*>(x.const_data_ptr());
  for (int64_t b = 0; b < x.size(0); ++b, row += length * bytes) {
    const char* const last = row + (length - 1) * bytes;
    int64_t first = length - 1;
    while (first > 0 && std::memcmp(row + (first - 1) * bytes, last, bytes) == 0) --first;
    from.push_back(first);
  }
  return from;
}

// x [B, n, D] with its last token once more up to `length`.
at::Tensor LastRepeated(const at::Tensor& x, int64_t length) {
  const int64_t more = length - x.size(1);
  if (more == 0) return x;
  return at::cat({x, x.narrow(1, x.size(1) - 1, 1).expand({-1, more, -1})}, 1);
}

}  // namespace

// With our own product, whose rows have their bits wherever they stand, padding is computed once.
TextContext WanTransformer::EncodeText(const at::Tensor& embeds) const {
  c10::InferenceMode guard;
  RequireDim(embeds, 3, "text embeddings");
  RequireSize(embeds, 2, config_.text_dim, "text embeddings");
  const at::Tensor all = embeds.to(device_, dtype_).contiguous();
  const int64_t length = all.size(1);
  TextContext context;
  if (own_.InUse()) context.alike_from = AlikeFrom(all);
  const int64_t distinct =
      own_.InUse() ? *std::ranges::max_element(context.alike_from) + 1 : length;
  const at::Tensor x = all.narrow(1, 0, distinct).contiguous();
  const at::Tensor text = text_linear_2_(text_linear_1_(x, Activation::kGeluTanh));
  // Of all blocks at once, but where each product makes its form of the weights: that is one
  // block's at a time.
  const size_t together = own_.kept == LinearNumerics::kExact ? 1 : blocks_.size();
  for (size_t first = 0; first < blocks_.size(); first += together) {
    std::vector<const Linear*> layers;
    for (size_t i = first; i < first + together; ++i) {
      layers.push_back(&blocks_[i].cross.to_k);
      layers.push_back(&blocks_[i].cross.to_v);
    }
    const Linear::ResultsDone norm =
        IfOwn([&](const std::vector<at::Tensor>& done, int64_t row, int64_t count) {
          for (size_t i = 0; i < together; ++i) {
            NormRmsRows(done[2 * i], blocks_[first + i].cross.norm_k, config_.eps, row, count);
          }
        });
    std::vector<at::Tensor> results = Linear::RunAll(layers, text, {}, norm);
    for (size_t i = 0; i < together; ++i) {
      // What is done with makes room for what takes its place.
      at::Tensor key = std::exchange(results[2 * i], {});
      if (!norm) key = RmsNorm(key, blocks_[first + i].cross.norm_k);
      const at::Tensor value = std::exchange(results[2 * i + 1], {});
      context.blocks.push_back(
          {SplitHeads(LastRepeated(key, length)), SplitHeads(LastRepeated(value, length))});
    }
  }
  return context;
}

}  // namespace denoised
