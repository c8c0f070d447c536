#include "backends/registry.h"

#include "backends/dense_backends.h"
#include "backends/quantised_backends.h"
#include "backends/sparse_backends.h"

namespace denoised {
namespace {

constexpr char kNoCuda[] =
    "not in this build: it needs CUDA (configure with -DDENOISED_CUDA=ON, preset \"cuda\")";

// The one table, in the order in which automatic selection tries. `automatic` is off for what
// approximates attention: those run only when asked for by name.
std::vector<BackendRegistry::Entry> MakeEntries() {
  static const FlashAttnBackend flash_attn;
  static const TorchSdpaBackend torch_sdpa;
  static const ReferenceBackend reference;
  static const SageBackend sage;
  static const SageSlaBackend sage_sla;
  static const SageThreeBackend sage_three;
  static const AttnQatInferBackend qat_infer;
  static const VideoSparseBackend video_sparse;
  static const SlidingTileBackend sliding_tile;
  static const VmobaBackend vmoba;
  static const SlaBackend sla;
  static const BsaBackend bsa;
  static const NablaBackend nabla;
  static const NoAttentionBackend no_attention;
  return {
      // clang-format off
      // name                          implementation  why absent  automatic
      {AttnBackend::kCudnnAttn,         nullptr,        kNoCuda,    true},
      {AttnBackend::kFlashAttn,         &flash_attn,    "",         true},
      {AttnBackend::kTorchSdpa,         &torch_sdpa,    "",         true},
      {AttnBackend::kReference,         &reference,     "",         true},
      {AttnBackend::kSageAttn,          &sage,          "",         false},
      {AttnBackend::kSageAttnThree,     &sage_three,    "",         false},
      {AttnBackend::kAttnQatInfer,      &qat_infer,     "",         false},
      {AttnBackend::kVideoSparseAttn,   &video_sparse,  "",         false},
      {AttnBackend::kSlidingTileAttn,   &sliding_tile,  "",         false},
      {AttnBackend::kVmobaAttn,         &vmoba,         "",         false},
      {AttnBackend::kSlaAttn,           &sla,           "",         false},
      {AttnBackend::kSageSlaAttn,       &sage_sla,      "",         false},
      {AttnBackend::kBsaAttn,           &bsa,           "",         false},
      {AttnBackend::kNablaAttn,         &nabla,         "",         false},
      {AttnBackend::kNoAttention,       &no_attention,  "",         false},
      // clang-format on
  };
}

}  // namespace

const BackendRegistry& BackendRegistry::Default() {
  static const BackendRegistry registry(MakeEntries());
  return registry;
}

const BackendRegistry::Entry* BackendRegistry::Find(AttnBackend id) const {
  for (const Entry& entry : entries_) {
    if (entry.id == id) return &entry;
  }
  return nullptr;
}

std::string_view BackendRegistry::Summary(AttnBackend id) const {
  const Entry* entry = Find(id);
  if (entry == nullptr) return "not registered";
  return entry->backend != nullptr ? entry->backend->summary() : entry->absent_reason;
}

std::optional<std::string> BackendRegistry::WhyNot(AttnBackend id, const AttentionSpec& spec,
                                                   const DeviceInfo& device) const {
  const Entry* entry = Find(id);
  if (entry == nullptr) return "not registered";
  if (entry->backend == nullptr) return entry->absent_reason;
  return entry->backend->Supports(spec, device);
}

}  // namespace denoised
