// The diffusion transformer of Wan 2.1 and 2.2 (diffusers' WanTransformer3DModel), text-to-video.
//
// With exact numerics (runtime/numerics.h) numbers follow diffusers op for op and dtype for dtype,
// so that a forward has its bits; with packed ones they do not depend on the number of threads.
// What depends on the prompt alone (text embedder, every block's cross-attention keys and values)
// is computed once per job in EncodeText. Paper: Wan team, arXiv:2503.20314.
//
// Room for more: per-token timesteps (Wan 2.2 TI2V) are in; an image context (2.1 I2V) would be a
// second set of keys and values in TextContext and a second attention call in CrossAttend.
#ifndef DENOISED_RUNTIME_MODELS_WAN_TRANSFORMER_H_
#define DENOISED_RUNTIME_MODELS_WAN_TRANSFORMER_H_

#include <ATen/ATen.h>

#include <array>
#include <atomic>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "runtime/attention/attention_layer.h"
#include "runtime/models/fused.h"
#include "runtime/models/layers.h"
#include "runtime/models/rope.h"
#include "runtime/models/row_kernels.h"

namespace denoised {

class ConfigReader;

struct WanTransformerConfig {
  std::array<int64_t, 3> patch_size = {1, 2, 2};  // T, H, W
  int64_t num_heads = 40;
  int64_t head_dim = 128;
  int64_t in_channels = 16;
  int64_t out_channels = 16;
  int64_t text_dim = 4096;
  int64_t freq_dim = 256;
  int64_t ffn_dim = 13824;
  int64_t num_layers = 40;
  bool cross_attn_norm = true;
  double eps = 1e-6;
  int64_t rope_max_seq_len = 1024;

  int64_t width() const { return num_heads * head_dim; }
  int64_t patch_volume() const { return patch_size[0] * patch_size[1] * patch_size[2]; }

  // INVALID_ARGUMENT naming file, key and value for anything that this model does not do.
  static WanTransformerConfig Read(const ConfigReader& reader);
};

// What a prompt is to the transformer: one per job and branch, shared by all its steps.
struct TextContext {
  struct KeyValue {
    at::Tensor key;    // [B, L, H, head_dim]
    at::Tensor value;  // [B, L, H, head_dim]
  };
  std::vector<KeyValue> blocks;
  // AttentionInputs::alike_from: where a row's padding begins, its last token where it has none.
  // Empty with exact numerics.
  std::vector<int64_t> alike_from;
};

// Rows of a forward that have their text and their plan of attention in common: a pass of a job, or
// the rows of a Denoise call. What it points to outlives the forward.
struct RowSet {
  at::Tensor latents;                   // [b, in_channels, f, h, w], cast to the model's dtype
  at::Tensor timestep;                  // [b] or, one per token, [b, S]; int64 or floating
  const TextContext* text = nullptr;    // of b rows
  const AttentionPlan* plan = nullptr;  // null: the forward context's
};

// Immutable after Load; used by the engine thread, inside a ScopedForwardContext. Its plan, or
// those of the row sets, have backends for AttentionRole::kSelf and kCross.
class WanTransformer {
 public:
  // Reads config.json and diffusion_pytorch_model.safetensors (or shards) of `folder`. What
  // diffusers keeps in float32 (time embedder, modulation tables, the affine norm) stays so.
  static std::unique_ptr<WanTransformer> Load(const ModelFolder& folder, at::ScalarType dtype,
                                              at::Device device,
                                              LinearNumerics linear = LinearNumerics::kPacked);

  // embeds [B, L, text_dim] in any floating dtype.
  TextContext EncodeText(const at::Tensor& embeds) const;

  // The velocities [b, out_channels, f, h, w] in the model's dtype, one tensor a set. All sets have
  // one shape of latents but for b, and one form of timesteps. Everything but attention is done on
  // all rows at once; with exact numerics products too are a call a set. Neighbours whose plans
  // name one backend, one metadata and one tally share a call of self-attention; where they are
  // given the same tensors of latents and timesteps as well, as the passes of guidance are, what
  // comes before the text is computed once for all of them. A set's bits do not depend on who else
  // is there, as long as its attention's do not.
  std::vector<at::Tensor> Forward(const std::vector<RowSet>& sets) const;
  // Of one set, under the plan of the forward context.
  at::Tensor Forward(const at::Tensor& latents, const at::Tensor& timestep,
                     const TextContext& text) const;

  // Tokens per axis of latents [.., f, h, w]. INVALID_ARGUMENT where an axis is not a positive
  // multiple of the patch.
  std::array<int64_t, 3> TokenGrid(at::IntArrayRef latent_shape) const;

  // What the two kinds of attention need, for Select().
  AttentionSpec SelfSpec(const std::array<int64_t, 3>& grid) const;
  AttentionSpec CrossSpec(const std::array<int64_t, 3>& grid, int64_t text_length) const;

  // The checkpoint carries to_gate_compress, the learned gate of VIDEO_SPARSE_ATTN.
  bool has_gate() const { return has_gate_; }
  // It carries attn1.attn_impl.proj_l, the learned map of SLA_ATTN's linear branch (FastVideo's
  // name; TurboDiffusion checkpoints converted for it have it).
  bool has_projection() const { return has_projection_; }
  // Weights in a form that is not kept, which calls with `linear` numerics make: the int8 form of
  // the blocks' layers at the first call, to stay; any other a layer at a time. Any thread.
  int64_t FormBytes(LinearNumerics linear) const;
  // Of those, what is there by now and stays. Any thread.
  int64_t MadeBytes() const { return made_bytes_; }
  const WanTransformerConfig& config() const { return config_; }
  at::ScalarType dtype() const { return dtype_; }
  const std::vector<std::string>& unused_tensors() const { return unused_; }

 private:
  struct Attention {
    Linear to_q, to_k, to_v, to_out;
    at::Tensor norm_q, norm_k;  // [D]: over all heads at once
  };
  struct Block {
    at::Tensor modulation;  // [1, 6, D] float32
    Attention self, cross;
    Linear to_gate;                       // undefined: none in the checkpoint
    at::Tensor sla_weight, sla_bias;      // [D_head, D_head], [D_head] float32, or undefined
    at::Tensor norm2_weight, norm2_bias;  // [D] float32, undefined without cross_attn_norm
    Linear ffn_in, ffn_out;
  };
  // Of the rows' timesteps. With our own kernels each value is embedded once, U of them, and rows
  // find theirs by an index; else one after another, in the reference's shape.
  struct Conditioning {
    at::Tensor embedding;   // [B or U, 1 or S, D] in the model's dtype
    at::Tensor projection;  // [B or U, 1 or S, 6, D] float32
    at::Tensor index;       // int32 [B, 1 or S], or undefined
  };
  // Neighbouring sets that share a call of attention.
  struct Together {
    int64_t first;               // row
    std::vector<int64_t> sizes;  // of the sets
    const AttentionPlan* plan;
    int64_t rows() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }
  };
  // What the blocks of one forward have in common.
  struct Rows {
    Rows(const std::array<int64_t, 3>& grid, RopeTables rope) : grid(grid), rope(std::move(rope)) {}
    void Add(const RowSet& set);

    const std::array<int64_t, 3> grid;
    const RopeTables rope;
    std::vector<const RowSet*> sets;
    std::vector<int64_t> sizes;  // of the sets
    int64_t count = 0;           // of the rows
    std::vector<Together> self;
    Conditioning time;
  };
  // Of a forward some of whose sets are the same up to the text.
  struct Repeats {
    Rows once;          // each such set once
    at::Tensor source;  // int64 [all rows]: the row of `once` that each is

    // What was made of `once`, of all rows.
    at::Tensor Spread(const at::Tensor& x) const;
    Hidden Spread(const Hidden& hidden) const;
    Conditioning Spread(const Conditioning& time) const;
  };

  WanTransformer(WanTransformerConfig config, at::ScalarType dtype, at::Device device);
  void TakeTensors(const LoadOptions& from);
  Block TakeBlock(const LoadOptions& from, int64_t index) const;
  Attention TakeAttention(const LoadOptions& from, const std::string& name) const;

  void CheckSet(const RowSet& set, const RowSet& first, int64_t tokens) const;
  std::optional<Repeats> RepeatsIn(const Rows& rows) const;
  Conditioning EmbedTime(const Rows& rows) const;
  Conditioning EmbedEach(const std::vector<at::Tensor>& times,
                         const std::vector<int64_t>& sizes) const;
  Conditioning EmbedUnique(const Rows& rows) const;
  at::Tensor EmbedPatches(const Rows& rows) const;
  at::Tensor Modulated(const at::Tensor& table, const at::Tensor& time,
                       std::initializer_list<int64_t> scales) const;
  Hidden RunBlock(int layer, const Hidden& hidden, const Rows& rows,
                  const Repeats* repeats = nullptr) const;
  Hidden AddBranch(const Hidden& hidden, const Linear& last, const at::Tensor& x,
                   const at::Tensor& gate, const Rows& rows) const;
  at::Tensor SelfAttend(int layer, const LinearInput& x, const Rows& rows) const;
  AttentionExtras ExtrasOf(int layer, const LinearInput& x, const Together& part) const;
  at::Tensor CrossQuery(int layer, const Hidden& hidden, const Rows& rows) const;
  at::Tensor CrossAttend(int layer, const at::Tensor& query, const Rows& rows) const;
  at::Tensor Project(const Hidden& hidden, const Rows& rows) const;
  Linear::ResultsDone IfOwn(Linear::ResultsDone done) const;
  bool OwnRows() const;  // norms are those of row_kernels.h
  at::Tensor SplitHeads(const at::Tensor& x) const;
  LinearInput LayerNormModulate(const at::Tensor& wide, const at::Tensor& scale_plus_one,
                                const at::Tensor& shift, const at::Tensor& index) const;
  LinearInput LayerNorm(const at::Tensor& wide, const at::Tensor& weight,
                        const at::Tensor& bias) const;
  at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor RmsNormRotate(const at::Tensor& x, const at::Tensor& weight,
                           const RopeTables& rope) const;

  const WanTransformerConfig config_;
  const at::ScalarType dtype_;
  const at::Device device_;
  const RopeCache rope_;
  OwnKernels own_;
  std::atomic<int64_t> made_bytes_ = 0;
  at::Tensor time_frequencies_;              // [1, freq_dim / 2] float32: the reference's
  std::vector<float> own_time_frequencies_;  // [freq_dim / 2], of our own product's numerics
  at::Tensor patch_weight_, patch_bias_;     // [D, in, pt, ph, pw], [D]
  Linear patch_linear_;                      // the same numbers, a patch a row
  Linear time_linear_1_, time_linear_2_;     // float32
  Linear time_projection_;                   // D -> 6 D
  Linear text_linear_1_, text_linear_2_;
  std::vector<Block> blocks_;
  at::Tensor out_modulation_;  // [1, 2, D] float32
  Linear proj_out_;
  bool has_gate_ = false, has_projection_ = false;
  std::vector<std::string> unused_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_WAN_TRANSFORMER_H_
