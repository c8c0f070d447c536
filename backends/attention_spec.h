// What a layer needs from attention, and what the device offers. Torch-free plain values:
// everything that can change a selection is in here or in the policy, so that Select() is a pure
// function.
#ifndef DENOISED_BACKENDS_ATTENTION_SPEC_H_
#define DENOISED_BACKENDS_ATTENTION_SPEC_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attn_backend.h"

namespace denoised {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kInt64, kInt32, kUInt8 };
std::string_view DTypeName(DType dtype);  // "float32", "bfloat16", ...
size_t DTypeSize(DType dtype);            // bytes per element

// Which attention of the pipeline a layer is. Receipts and metrics are by role.
enum class AttentionRole : uint8_t { kSelf, kCross, kTextEncoder, kVae };
inline constexpr int kNumAttentionRoles = 4;
std::string_view AttentionRoleName(AttentionRole role);  // "self", "cross", "text_encoder", "vae"

struct DeviceInfo {
  enum class Type : uint8_t { kCpu, kCuda };
  Type type = Type::kCpu;
  int index = 0;
  int major = 0, minor = 0;  // CUDA compute capability
  std::string name;          // as the device calls itself
  bool avx2 = false, avx512 = false, avx512_bf16 = false, avx512_vnni = false;
  bool amx_bf16 = false, amx_int8 = false;
  bool slow_bf16 = false;  // vector products of bfloat16 take longer than those of float32
  bool operator==(const DeviceInfo&) const = default;
};

// Instruction sets of this CPU that the pin allows (cpu_isa.h), or the properties of CUDA device
// `index`. Throws FAILED_PRECONDITION with the reason where there is no such device.
DeviceInfo QueryCpu();
DeviceInfo QueryCuda(int index);

struct AttentionSpec {
  AttentionRole role = AttentionRole::kSelf;
  int64_t num_heads = 1;
  int64_t head_size = 64;
  DType dtype = DType::kFloat32;
  int64_t q_len = 0;  // tokens; 0 = not known yet
  int64_t kv_len = 0;
  std::array<int64_t, 3> grid = {0, 0, 0};  // tokens per axis (T, H, W); zeros = no video grid
  bool causal = false;
  bool has_mask = false;               // an additive or boolean mask comes with the call
  bool has_gate = false;               // the checkpoint carries to_gate_compress (VSA)
  bool has_projection = false;         // the checkpoint carries proj_l (SLA)
  bool custom_scale = false;           // the softmax scale is not head_size^-0.5
  std::vector<AttnBackend> supported;  // what the layer lists; never empty
  bool Lists(AttnBackend backend) const;
  bool operator==(const AttentionSpec&) const = default;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTENTION_SPEC_H_
