#include "backends/registry.h"

#include "backends/admission.h"
#include "backends/cuda/cudnn_attn.h"
#include "backends/dense_backends.h"
#include "backends/parameters.h"
#include "backends/quantised_backends.h"
#include "backends/sparse_backends.h"

namespace denoised {
namespace {

constexpr char kNoCuda[] =
    "not in this build: it needs CUDA (configure with -DDENOISED_CUDA=ON, preset \"cuda\")";

// One of each, all with the same admission.
struct Backends {
  explicit Backends(Admission admission)
      : cudnn(MakeCudnnBackend(admission)),
        sage(admission),
        sage_sla(admission),
        video_sparse(admission),
        sliding_tile(admission),
        vmoba(admission),
        sla(admission),
        bsa(admission),
        nabla(admission) {}

  const std::unique_ptr<AttentionBackend> cudnn;  // null in builds without CUDA
  const FlashAttnBackend flash_attn;
  const TorchSdpaBackend torch_sdpa;
  const ReferenceBackend reference;
  const SageBackend sage;
  const SageSlaBackend sage_sla;
  const SageThreeBackend sage_three;
  const AttnQatInferBackend qat_infer;
  const VideoSparseBackend video_sparse;
  const SlidingTileBackend sliding_tile;
  const VmobaBackend vmoba;
  const SlaBackend sla;
  const BsaBackend bsa;
  const NablaBackend nabla;
  const NoAttentionBackend no_attention;
};

// The one table, in the order in which automatic selection tries. `automatic` is off for what
// approximates attention: those run only when asked for by name.
std::vector<BackendRegistry::Entry> EntriesOf(const Backends& b) {
  const char* no_cudnn = b.cudnn == nullptr ? kNoCuda : "";
  return {
      // clang-format off
      // name                             implementation    why absent automatic
      {AttnBackend::kCudnnAttn,           b.cudnn.get(),    no_cudnn,  true},
      {AttnBackend::kFlashAttn,           &b.flash_attn,    "",        true},
      {AttnBackend::kTorchSdpa,           &b.torch_sdpa,    "",        true},
      {AttnBackend::kReference,           &b.reference,     "",        true},
      {AttnBackend::kSageAttn,            &b.sage,          "",        false},
      {AttnBackend::kSageAttnThree,       &b.sage_three,    "",        false},
      {AttnBackend::kAttnQatInfer,        &b.qat_infer,     "",        false},
      {AttnBackend::kVideoSparseAttn,     &b.video_sparse,  "",        false},
      {AttnBackend::kSlidingTileAttn,     &b.sliding_tile,  "",        false},
      {AttnBackend::kVmobaAttn,           &b.vmoba,         "",        false},
      {AttnBackend::kSlaAttn,             &b.sla,           "",        false},
      {AttnBackend::kSageSlaAttn,         &b.sage_sla,      "",        false},
      {AttnBackend::kBsaAttn,             &b.bsa,           "",        false},
      {AttnBackend::kNablaAttn,           &b.nabla,         "",        false},
      {AttnBackend::kNoAttention,         &b.no_attention,  "",        false},
      // clang-format on
  };
}

}  // namespace

const BackendRegistry& BackendRegistry::Default() {
  static const Backends backends(Admission::kMeasured);
  static const BackendRegistry registry(EntriesOf(backends));
  return registry;
}

const BackendRegistry& BackendRegistry::WithUnmeasured() {
  static const Backends backends(Admission::kUnmeasured);
  static const BackendRegistry registry(EntriesOf(backends));
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

std::optional<std::string> BackendRegistry::WhyYields(AttnBackend id, const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  return Find(id)->backend->Yields(spec, device);
}

std::string BackendRegistry::CanonicalParameters(AttnBackend id, const AttentionSpec& spec,
                                                 const std::string& parameters_json) const {
  if (const auto builder = Find(id)->backend->MakeBuilder()) {
    return builder->Canonical({0, 1, spec, parameters_json});
  }
  const nlohmann::json given = Parameters::ParseObject(parameters_json);
  if (!given.empty()) {
    Parameters::Refuse(given.begin().key().substr(0, 64),
                       std::string(AttnBackendName(id)) + " takes no parameters");
  }
  return "";
}

}  // namespace denoised
