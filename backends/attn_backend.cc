#include "backends/attn_backend.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "backends/error.h"

namespace denoised {
namespace {

struct NamedBackend {
  AttnBackend id;
  std::string_view name;
};

// In the enum's order, so that a value is its own index.
constexpr std::array<NamedBackend, kNumAttnBackends> kNames = {{
    {AttnBackend::kFlashAttn, "FLASH_ATTN"},
    {AttnBackend::kTorchSdpa, "TORCH_SDPA"},
    {AttnBackend::kSageAttn, "SAGE_ATTN"},
    {AttnBackend::kSageAttnThree, "SAGE_ATTN_THREE"},
    {AttnBackend::kAttnQatInfer, "ATTN_QAT_INFER"},
    {AttnBackend::kVideoSparseAttn, "VIDEO_SPARSE_ATTN"},
    {AttnBackend::kSlidingTileAttn, "SLIDING_TILE_ATTN"},
    {AttnBackend::kVmobaAttn, "VMOBA_ATTN"},
    {AttnBackend::kSlaAttn, "SLA_ATTN"},
    {AttnBackend::kSageSlaAttn, "SAGE_SLA_ATTN"},
    {AttnBackend::kBsaAttn, "BSA_ATTN"},
    {AttnBackend::kNablaAttn, "NABLA_ATTN"},
    {AttnBackend::kCudnnAttn, "CUDNN_ATTN"},
    {AttnBackend::kReference, "REFERENCE"},
    {AttnBackend::kNoAttention, "NO_ATTENTION"},
}};

std::string SortedNames() {
  std::vector<std::string_view> names;
  for (const NamedBackend& entry : kNames) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  std::string joined;
  for (std::string_view name : names) joined += (joined.empty() ? "" : ", ") + std::string(name);
  return joined;
}

// ASCII only, whatever the process's locale is.
std::string TrimmedUpper(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n\f\v";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return "";
  std::string upper(text.substr(first, text.find_last_not_of(kBlanks) - first + 1));
  for (char& c : upper) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return upper;
}

// What a user typed, short and printable enough for one line.
std::string Quoted(std::string_view text) {
  constexpr size_t kMaxShown = 64;
  std::string shown = "\"";
  for (char c : text.substr(0, kMaxShown)) {
    shown += (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) ? '?' : c;
  }
  return shown + (text.size() > kMaxShown ? "...\"" : "\"");
}

}  // namespace

const std::vector<AttnBackend>& AllAttnBackends() {
  static const std::vector<AttnBackend> all = [] {
    std::vector<AttnBackend> ids;
    for (const NamedBackend& entry : kNames) ids.push_back(entry.id);
    return ids;
  }();
  return all;
}

std::string_view AttnBackendName(AttnBackend backend) {
  const size_t index = static_cast<size_t>(backend);
  return index < kNames.size() ? kNames[index].name : "UNKNOWN";
}

std::optional<AttnBackend> BackendNameToEnum(std::string_view name) {
  for (const NamedBackend& entry : kNames) {
    if (entry.name == name) return entry.id;
  }
  return std::nullopt;
}

AttnBackend CoerceAttnBackend(std::string_view name, const std::string& field) {
  if (const auto backend = BackendNameToEnum(TrimmedUpper(name))) return *backend;
  throw InvalidField(field, "wanted one of " + SortedNames() + "; got " + Quoted(name));
}

std::optional<AttnBackend> GetEnvVariableAttnBackend() {
  constexpr char kVariable[] = "FASTVIDEO_ATTENTION_BACKEND";
  const char* value = std::getenv(kVariable);
  if (value == nullptr || TrimmedUpper(value).empty()) return std::nullopt;
  return CoerceAttnBackend(value, kVariable);
}

}  // namespace denoised
