// Names of the attention backends. Torch-free; the names are the wire format, numbers never are.
//
// FastVideo's names (fastvideo/platforms/interface.py, AttentionBackendEnum) plus our own
// REFERENCE and CUDNN_ATTN.
#ifndef DENOISED_BACKENDS_ATTN_BACKEND_H_
#define DENOISED_BACKENDS_ATTN_BACKEND_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace denoised {

enum class AttnBackend : uint8_t {
  kFlashAttn,
  kTorchSdpa,
  kSageAttn,
  kSageAttnThree,
  kAttnQatInfer,
  kVideoSparseAttn,
  kSlidingTileAttn,
  kVmobaAttn,
  kSlaAttn,
  kSageSlaAttn,
  kBsaAttn,
  kNablaAttn,
  kCudnnAttn,
  kReference,
  kNoAttention,
};
inline constexpr int kNumAttnBackends = static_cast<int>(AttnBackend::kNoAttention) + 1;

// Every name, in the enum's order.
const std::vector<AttnBackend>& AllAttnBackends();

// "TORCH_SDPA", ... Never fails.
std::string_view AttnBackendName(AttnBackend backend);

// Exact, case-sensitive lookup; empty for anything else ("" and blanks included).
std::optional<AttnBackend> BackendNameToEnum(std::string_view name);

// Typed sources (requests, flags): trims, upper-cases, and throws INVALID_ARGUMENT with all names,
// sorted, where the name is unknown or blank. `field` is what the error names.
AttnBackend CoerceAttnBackend(std::string_view name, const std::string& field = "backend");

// FASTVIDEO_ATTENTION_BACKEND, spelt as in a request (CoerceAttnBackend). Unset or blank means
// automatic; an unknown name throws, naming the variable: FastVideo warned and ran something else.
// Called once, by the program's configuration.
std::optional<AttnBackend> GetEnvVariableAttnBackend();

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTN_BACKEND_H_
