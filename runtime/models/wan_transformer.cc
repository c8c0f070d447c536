#include "runtime/models/wan_transformer.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "backends/error.h"
#include "runtime/attention/forward_context.h"
#include "runtime/models/patches.h"
#include "runtime/models/row_kernels_cuda.h"

namespace denoised {
namespace {

// [B or U, 1 or S, 6, D] -> the part `index` as [B or U, 1 or S, D].
at::Tensor Part(const at::Tensor& modulation, int64_t index) { return modulation.select(2, index); }

// Order of the six parts in a block's table.
enum : int64_t { kShift1, kScale1, kGate1, kShift2, kScale2, kGate2 };

bool SelfAttentionRuns(AttnBackend id, int layer) {
  const AttentionPlan* plan = GetForwardContext().attn_metadata;
  const AttentionSlot* slot =
      plan == nullptr ? nullptr : (*plan)[static_cast<size_t>(AttentionRole::kSelf)].Of(layer);
  return slot != nullptr && slot->id == id;
}

// What `attend` gives inside a context of the forward that has this plan.
template <typename F>
at::Tensor UnderPlan(const AttentionPlan* plan, const F& attend) {
  if (plan == nullptr) return attend();
  ForwardContext context = GetForwardContext();
  context.attn_metadata = plan;
  const ScopedForwardContext scope(context);
  return attend();
}

}  // namespace

std::array<int64_t, 3> WanTransformer::TokenGrid(at::IntArrayRef latent_shape) const {
  std::array<int64_t, 3> grid{};
  const char* const axes[] = {"frames", "height", "width"};
  for (int i = 0; i < 3; ++i) {
    const int64_t size = latent_shape.at(latent_shape.size() - 3 + i);
    if (size < 1 || size % config_.patch_size[i] != 0) {
      throw InvalidField("latents", std::string(axes[i]) + ": wanted a positive multiple of " +
                                        std::to_string(config_.patch_size[i]) + ", came " +
                                        std::to_string(size));
    }
    grid[i] = size / config_.patch_size[i];
  }
  return grid;
}

AttentionSpec WanTransformer::SelfSpec(const std::array<int64_t, 3>& grid) const {
  AttentionSpec spec;
  spec.role = AttentionRole::kSelf;
  spec.num_heads = config_.num_heads;
  spec.head_size = config_.head_dim;
  spec.dtype = SpecDType(dtype_);
  spec.q_len = spec.kv_len = grid[0] * grid[1] * grid[2];
  spec.grid = grid;
  spec.has_gate = has_gate_;
  spec.has_projection = has_projection_;
  spec.supported = AllAttnBackends();
  std::erase(spec.supported, AttnBackend::kNoAttention);
  return spec;
}

AttentionSpec WanTransformer::CrossSpec(const std::array<int64_t, 3>& grid,
                                        int64_t text_length) const {
  AttentionSpec spec = SelfSpec(grid);
  spec.role = AttentionRole::kCross;
  spec.kv_len = text_length;
  spec.grid = {0, 0, 0};
  spec.has_gate = spec.has_projection = false;
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kCudnnAttn,
                    AttnBackend::kReference};
  return spec;
}

at::Tensor WanTransformer::Forward(const at::Tensor& latents, const at::Tensor& timestep,
                                   const TextContext& text) const {
  return Forward({{latents, timestep, &text}}).front();
}

std::vector<at::Tensor> WanTransformer::Forward(const std::vector<RowSet>& sets) const {
  c10::InferenceMode guard;
  TORCH_CHECK(!sets.empty(), "a forward of no rows");
  RequireDim(sets.front().latents, 5, "latents");
  const std::array<int64_t, 3> grid = TokenGrid(sets.front().latents.sizes());
  Rows rows(grid, rope_.Get(grid));
  for (const RowSet& set : sets) {
    CheckSet(set, sets.front(), grid[0] * grid[1] * grid[2]);
    rows.Add(set);
  }
  std::optional<Repeats> repeats = RepeatsIn(rows);
  Rows& first = repeats ? repeats->once : rows;
  first.time = EmbedTime(first);
  if (repeats) rows.time = repeats->Spread(first.time);
  Hidden hidden = Hidden::From(EmbedPatches(first));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    hidden = RunBlock(static_cast<int>(i), hidden, rows, i == 0 && repeats ? &*repeats : nullptr);
  }
  const at::Tensor out = Project(hidden, rows);
  return sets.size() == 1 ? std::vector<at::Tensor>{out} : out.split_with_sizes(rows.sizes);
}

int64_t WanTransformer::FormBytes(LinearNumerics linear) const {
  if (!own_.possible || linear == own_.kept) return 0;
  const int64_t d = config_.width(), ffn = config_.ffn_dim;
  const int64_t largest = d * std::max(ffn, 6 * d);
  const int64_t converted = 2 * largest * static_cast<int64_t>(c10::elementSize(dtype_));
  if (linear != LinearNumerics::kInt8) return converted;
  const int64_t int8 = config_.num_layers * (8 * d * d + 2 * d * ffn);
  return converted + std::max<int64_t>(0, int8 - made_bytes_);
}

// table [1, P, D] + time [B or U, 1 or S, P or 1, D], and 1 more in the parts that are scales.
at::Tensor WanTransformer::Modulated(const at::Tensor& table, const at::Tensor& time,
                                     std::initializer_list<int64_t> scales) const {
  if (own_.InUse()) return Modulation(table, time, scales);
  at::Tensor modulation = table.unsqueeze(1) + time;
  for (const int64_t part : scales) modulation.select(2, part).add_(1);
  return modulation;
}

// Rows that repeat others are those up to the text; from there on each is its own.
Hidden WanTransformer::RunBlock(int layer, const Hidden& hidden, const Rows& rows,
                                const Repeats* repeats) const {
  const Block& block = blocks_[layer];
  const Rows& first = repeats != nullptr ? repeats->once : rows;
  at::Tensor m = Modulated(block.modulation, first.time.projection, {kScale1, kScale2});
  LinearInput n1 =
      LayerNormModulate(hidden.wide, Part(m, kScale1), Part(m, kShift1), first.time.index);
  if (has_gate_) n1 = n1.Whole();  // the gate's layer takes parts of it
  const at::Tensor attended = SelfAttend(layer, n1, first);
  Hidden h1 = AddBranch(hidden, block.self.to_out, attended, Part(m, kGate1), first);
  at::Tensor query = CrossQuery(layer, h1, first);
  if (repeats != nullptr) {
    h1 = repeats->Spread(h1);
    query = repeats->Spread(query);
    if (!first.time.index.defined()) m = repeats->Spread(m);
  }
  const at::Tensor told = CrossAttend(layer, query, rows);
  const Hidden h2 = AddBranch(h1, block.cross.to_out, told, {}, rows);

  const at::Tensor& index = rows.time.index;
  const LinearInput n3 = LayerNormModulate(h2.wide, Part(m, kScale2), Part(m, kShift2), index);
  const at::Tensor f = block.ffn_in(n3, Activation::kGeluTanh, rows.sizes);
  return AddBranch(h2, block.ffn_out, f, Part(m, kGate2), rows);
}

// hidden + gate * last(x), the end of a residual branch; no gate: ones. With our own product the
// sum stays float32 and takes the place of `hidden`.
Hidden WanTransformer::AddBranch(const Hidden& hidden, const Linear& last, const at::Tensor& x,
                                 const at::Tensor& gate, const Rows& rows) const {
  if (!own_.InUse()) {
    const at::Tensor update = last(x, Activation::kNone, rows.sizes);
    return gate.defined() ? AddGated(hidden, update, gate) : Add(hidden, update);
  }
  last.AddTo(hidden.wide, x, gate, rows.time.index);
  return {config_.cross_attn_norm ? at::Tensor() : hidden.wide.to(dtype_), hidden.wide};
}

at::Tensor WanTransformer::SelfAttend(int layer, const LinearInput& x, const Rows& rows) const {
  const Block& block = blocks_[layer];
  const Attention& attention = block.self;
  const Linear::ResultsDone norm =
      IfOwn([&](const std::vector<at::Tensor>& qkv, int64_t first, int64_t count) {
        const auto run = [&](const at::Tensor& of, const at::Tensor& weight) {
          NormRmsRotateRows(of, weight, config_.eps, rows.rope, config_.num_heads, first, count);
        };
        run(qkv[0], attention.norm_q);
        run(qkv[1], attention.norm_k);
      });
  const std::vector<at::Tensor> qkv =
      Linear::RunAll({&attention.to_q, &attention.to_k, &attention.to_v}, x, rows.sizes, norm);
  const auto heads = [&](const at::Tensor& of, const at::Tensor& weight) {
    return norm ? SplitHeads(of) : RmsNormRotate(of, weight, rows.rope);
  };
  const at::Tensor q = heads(qkv[0], attention.norm_q), k = heads(qkv[1], attention.norm_k);
  const at::Tensor v = SplitHeads(qkv[2]);
  const AttentionLayer run(AttentionRole::kSelf, layer);
  std::vector<at::Tensor> parts;
  for (const Together& part : rows.self) {
    const auto of = [&](const at::Tensor& all) { return RowsAlone(all, part.first, part.rows()); };
    parts.push_back(UnderPlan(part.plan, [&] {
      const AttentionExtras extras = ExtrasOf(layer, x, part);
      return run.Forward(of(q), of(k), of(v), extras).flatten(2);
    }));
  }
  return Joined(std::move(parts));
}

// What some backends take of the rows of a call of this layer, of all rows `x`.
AttentionExtras WanTransformer::ExtrasOf(int layer, const LinearInput& x,
                                         const Together& part) const {
  const Block& block = blocks_[layer];
  AttentionExtras extras;
  if (has_gate_ && SelfAttentionRuns(AttnBackend::kVideoSparseAttn, layer)) {
    extras.gate = SplitHeads(block.to_gate(RowsAlone(x.Whole(), part.first, part.rows()),
                                           Activation::kNone, part.sizes));
  }
  extras.projection = block.sla_weight;
  extras.projection_bias = block.sla_bias;
  return extras;
}

at::Tensor WanTransformer::CrossQuery(int layer, const Hidden& hidden, const Rows& rows) const {
  const Block& block = blocks_[layer];
  const LinearInput x = config_.cross_attn_norm
                            ? LayerNorm(hidden.wide, block.norm2_weight, block.norm2_bias)
                            : LinearInput(hidden.value);
  const Linear::ResultsDone norm =
      IfOwn([&](const std::vector<at::Tensor>& q, int64_t first, int64_t count) {
        NormRmsRows(q[0], block.cross.norm_q, config_.eps, first, count);
      });
  const at::Tensor projected = Linear::RunAll({&block.cross.to_q}, x, rows.sizes, norm)[0];
  return SplitHeads(norm ? projected : RmsNorm(projected, block.cross.norm_q));
}

// A call for each set, whose keys and values are its own.
at::Tensor WanTransformer::CrossAttend(int layer, const at::Tensor& query, const Rows& rows) const {
  const AttentionLayer run(AttentionRole::kCross, layer);
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (const RowSet* set : rows.sets) {
    const TextContext::KeyValue& text = set->text->blocks[layer];
    const int64_t size = set->latents.size(0);
    AttentionExtras extras;
    extras.alike_from = set->text->alike_from;
    parts.push_back(UnderPlan(set->plan, [&] {
      return run.Forward(RowsAlone(query, first, size), text.key, text.value, extras).flatten(2);
    }));
    first += size;
  }
  return Joined(std::move(parts));
}

// Norm, modulate, and from tokens back to latents.
at::Tensor WanTransformer::Project(const Hidden& hidden, const Rows& rows) const {
  const at::Tensor m = Modulated(out_modulation_, rows.time.embedding.unsqueeze(2), {1});
  const LinearInput n = LayerNormModulate(hidden.wide, Part(m, 1), Part(m, 0), rows.time.index);
  return LatentsFromTokens(proj_out_(n, Activation::kNone, rows.sizes), rows.grid,
                           config_.patch_size);
}

// What is done with rows as our own product completes them; nothing where it is not in use.
Linear::ResultsDone WanTransformer::IfOwn(Linear::ResultsDone done) const {
  return own_.InUse() ? std::move(done) : nullptr;
}

bool WanTransformer::OwnRows() const { return own_.InUse() || device_.is_cuda(); }

at::Tensor WanTransformer::SplitHeads(const at::Tensor& x) const {
  return x.view({x.size(0), x.size(1), config_.num_heads, config_.head_dim});
}

// Without weights, scaled and shifted by what belongs to the time step.
LinearInput WanTransformer::LayerNormModulate(const at::Tensor& wide,
                                              const at::Tensor& scale_plus_one,
                                              const at::Tensor& shift,
                                              const at::Tensor& index) const {
  if (OwnRows()) return NormModulate(wide, scale_plus_one, shift, config_.eps, dtype_, index);
  return Modulate(at::layer_norm(wide, {config_.width()}, {}, {}, config_.eps), scale_plus_one,
                  shift, dtype_);
}

LinearInput WanTransformer::LayerNorm(const at::Tensor& wide, const at::Tensor& weight,
                                      const at::Tensor& bias) const {
  if (!OwnRows()) {
    return at::layer_norm(wide, {config_.width()}, weight, bias, config_.eps).to(dtype_);
  }
  const std::vector<int64_t> one_row = {wide.size(0), 1, wide.size(2)};
  return NormModulate(wide, weight.expand(one_row), bias.expand(one_row), config_.eps, dtype_);
}

at::Tensor WanTransformer::RmsNorm(const at::Tensor& x, const at::Tensor& weight) const {
  if (x.is_cuda()) return NormRms(x, weight, config_.eps);
  return at::rms_norm(x, {config_.width()}, weight, config_.eps);
}

at::Tensor WanTransformer::RmsNormRotate(const at::Tensor& x, const at::Tensor& weight,
                                         const RopeTables& rope) const {
  if (x.is_cuda()) return NormRmsRotateCuda(x, weight, config_.eps, rope, config_.num_heads);
  return Rotate(SplitHeads(RmsNorm(x, weight)), rope.cos, rope.sin);
}

}  // namespace denoised
