// WanTransformer: the rows of a forward before its blocks.
#include <algorithm>
#include <bit>
#include <unordered_map>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/attention/forward_context.h"
#include "runtime/models/patches.h"
#include "runtime/models/wan_transformer.h"

namespace denoised {
namespace {

const RolePlan& SelfOf(const AttentionPlan& plan) {
  return plan[static_cast<size_t>(AttentionRole::kSelf)];
}

// Whether what two plans have for self-attention can be one call in each layer, and is tallied as
// one.
bool ShareCalls(const AttentionPlan* a, const AttentionPlan* b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr || !SelfOf(*a).Equals(SelfOf(*b))) return false;
  return std::ranges::equal(SelfOf(*a).slots, SelfOf(*b).slots, {}, &AttentionSlot::tally,
                            &AttentionSlot::tally);
}

// Whether somebody compares what the first block's call gives, row by row.
bool FirstCallIsWatched(const AttentionPlan* plan) {
  if (plan == nullptr) plan = GetForwardContext().attn_metadata;
  const AttentionSlot* slot = plan == nullptr ? nullptr : SelfOf(*plan).Of(0);
  return slot != nullptr && !slot->watched.empty();
}

// The numbers of a tensor on the CPU: a solver's int64 without ATen, whose conversion of one takes
// 10 us.
std::vector<float> Floats(const at::Tensor& x) {
  const auto all = [&]<typename T>(const T* numbers) {
    return std::vector<float>(numbers, numbers + x.numel());
  };
  if (x.is_contiguous() && x.scalar_type() == at::kLong) return all(x.const_data_ptr<int64_t>());
  const at::Tensor floats = x.to(at::kFloat).contiguous();
  return all(floats.const_data_ptr<float>());
}

bool AreTheSame(const RowSet& a, const RowSet& b) {
  return a.latents.is_same(b.latents) && a.timestep.is_same(b.timestep);
}

}  // namespace

void WanTransformer::Rows::Add(const RowSet& set) {
  const bool joins = !self.empty() && ShareCalls(self.back().plan, set.plan);
  if (!joins) self.push_back({count, {}, set.plan});
  const int64_t size = set.latents.size(0);
  self.back().sizes.push_back(size);
  sets.push_back(&set);
  sizes.push_back(size);
  count += size;
}

// Nothing where no two are the same.
std::optional<WanTransformer::Repeats> WanTransformer::RepeatsIn(const Rows& rows) const {
  Rows once(rows.grid, rows.rope);
  std::vector<int64_t> source;
  auto set = rows.sets.begin();
  for (const Together& part : rows.self) {
    const bool may_repeat = !FirstCallIsWatched(part.plan);
    const auto first = set;
    for (; set != first + std::ssize(part.sizes); ++set) {
      const bool repeats = may_repeat && set != first && AreTheSame(**set, **std::prev(set));
      if (!repeats) once.Add(**set);
      const int64_t size = (*set)->latents.size(0);
      for (int64_t row = once.count - size; row < once.count; ++row) source.push_back(row);
    }
  }
  if (once.count == rows.count) return std::nullopt;
  return Repeats{std::move(once), at::tensor(source, at::kLong).to(device_)};
}

at::Tensor WanTransformer::Repeats::Spread(const at::Tensor& x) const {
  return x.index_select(0, source);
}

Hidden WanTransformer::Repeats::Spread(const Hidden& hidden) const {
  Hidden spread{{}, Spread(hidden.wide)};
  if (hidden.value.defined()) {
    spread.value = hidden.value.is_same(hidden.wide) ? spread.wide : Spread(hidden.value);
  }
  return spread;
}

WanTransformer::Conditioning WanTransformer::Repeats::Spread(const Conditioning& time) const {
  if (time.index.defined()) return {time.embedding, time.projection, Spread(time.index)};
  return {Spread(time.embedding), Spread(time.projection), {}};
}

void WanTransformer::CheckSet(const RowSet& set, const RowSet& first, int64_t tokens) const {
  RequireDim(set.latents, 5, "latents");
  const int64_t batch = set.latents.size(0);
  RequireSize(set.latents, 1, config_.in_channels, "latents");
  for (int64_t axis = 2; axis < 5; ++axis) {
    RequireSize(set.latents, axis, first.latents.size(axis), "latents");
  }
  RequireDim(set.timestep, first.timestep.dim() == 2 ? 2 : 1, "timestep");
  RequireSize(set.timestep, 0, batch, "timestep");
  if (set.timestep.dim() == 2) RequireSize(set.timestep, 1, tokens, "timestep");
  if (set.text->blocks.size() != blocks_.size()) {
    throw InvalidField("text embeddings",
                       "were made for a model of " + std::to_string(set.text->blocks.size()) +
                           " layers, this one has " + std::to_string(blocks_.size()));
  }
  RequireSize(set.text->blocks.front().key, 0, batch, "text embeddings");
}

WanTransformer::Conditioning WanTransformer::EmbedTime(const Rows& rows) const {
  if (own_.InUse()) return EmbedUnique(rows);
  std::vector<at::Tensor> times;
  for (const RowSet* set : rows.sets) times.push_back(set->timestep.to(device_, at::kFloat));
  return EmbedEach(times, rows.sizes);
}

WanTransformer::Conditioning WanTransformer::EmbedUnique(const Rows& rows) const {
  std::vector<float> unique;
  std::unordered_map<uint32_t, int32_t> place;  // by their bits
  const at::Tensor& first = rows.sets.front()->timestep;
  Conditioning time;
  time.index = at::empty({rows.count, first.dim() == 2 ? first.size(1) : 1}, at::kInt);
  int32_t* index = time.index.mutable_data_ptr<int32_t>();
  for (const RowSet* set : rows.sets) {
    for (const float value : Floats(set->timestep)) {
      const auto [found, is_new] =
          place.emplace(std::bit_cast<uint32_t>(value), static_cast<int32_t>(unique.size()));
      if (is_new) unique.push_back(value);
      *index++ = found->second;
    }
  }
  const at::Tensor features = TimeFeatures(unique, own_time_frequencies_);
  time.embedding = time_linear_2_(time_linear_1_(features, Activation::kSilu)).to(dtype_);
  time.projection = time_projection_(Silu(time.embedding))
                        .to(at::kFloat)
                        .view({features.size(0), 1, 6, config_.width()});
  time.embedding = time.embedding.unsqueeze(1);
  return time;
}

// ATen's cos, sin and silu round the last few numbers of a tensor otherwise: a call a set.
WanTransformer::Conditioning WanTransformer::EmbedEach(const std::vector<at::Tensor>& times,
                                                       const std::vector<int64_t>& sizes) const {
  const int64_t tokens = times.front().dim() == 2 ? times.front().size(1) : 1;
  std::vector<at::Tensor> features;
  for (const at::Tensor& timestep : times) {
    const at::Tensor angle = timestep.reshape({-1, 1}) * time_frequencies_;
    const at::Tensor each = at::cat({angle.cos(), angle.sin()}, -1);
    // A GEMM may round rows of [B, D] and [B, 1, D] alike, but take the reference's shape anyway.
    features.push_back(timestep.dim() == 2 ? each.view({-1, tokens, config_.freq_dim}) : each);
  }
  const at::Tensor first = time_linear_1_(Joined(std::move(features)), Activation::kSilu, sizes);
  const at::Tensor embedding = time_linear_2_(first, Activation::kNone, sizes).to(dtype_);
  std::vector<at::Tensor> active;
  for (const at::Tensor& each : embedding.split_with_sizes(sizes)) active.push_back(at::silu(each));
  const int64_t batch = embedding.size(0);
  Conditioning time;
  time.projection = time_projection_(Joined(std::move(active)), Activation::kNone, sizes)
                        .to(at::kFloat)
                        .view({batch, tokens, 6, config_.width()});
  time.embedding = embedding.view({batch, tokens, config_.width()});
  return time;
}

at::Tensor WanTransformer::EmbedPatches(const Rows& rows) const {
  std::vector<at::Tensor> latents;
  for (const RowSet* set : rows.sets) latents.push_back(set->latents.to(device_, dtype_));
  if (!own_.InUse()) {
    std::vector<at::Tensor> embedded;
    for (const at::Tensor& x : latents) {
      StopPoint();
      const at::Tensor patches = at::conv3d(x, patch_weight_, patch_bias_, config_.patch_size);
      embedded.push_back(patches.flatten(2).transpose(1, 2).contiguous());
    }
    return Joined(std::move(embedded));
  }
  const int64_t tokens = rows.grid[0] * rows.grid[1] * rows.grid[2];
  const at::Tensor patches =
      at::empty({rows.count, tokens, config_.in_channels * config_.patch_volume()},
                latents.front().options());
  int64_t first = 0;
  for (const at::Tensor& x : latents) {
    TokensFromLatents(x.contiguous(), config_.patch_size, patches.narrow(0, first, x.size(0)));
    first += x.size(0);
  }
  return patch_linear_(patches);
}

}  // namespace denoised
