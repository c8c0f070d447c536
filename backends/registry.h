// The table of backends, in the order in which automatic selection tries them.
#ifndef DENOISED_BACKENDS_REGISTRY_H_
#define DENOISED_BACKENDS_REGISTRY_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"

namespace denoised {

class AttentionBackend;

// Read-only after construction; shared by all threads. Tests make their own with invented backends.
class BackendRegistry {
 public:
  struct Entry {
    AttnBackend id;
    const AttentionBackend* backend;  // null: known by name, not in this build
    std::string absent_reason;        // why it is null and how to get it
    bool automatic = true;            // false: only when asked for by name
  };

  explicit BackendRegistry(std::vector<Entry> entries) : entries_(std::move(entries)) {}

  // The backends of this build (registry.cc holds the one table). Those of Default() refuse what
  // has not run on a device yet, those of WithUnmeasured() serve it: see admission.h.
  static const BackendRegistry& Default();
  static const BackendRegistry& WithUnmeasured();

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* Find(AttnBackend id) const;
  std::string_view Summary(AttnBackend id) const;

  // Why `id` cannot serve the spec: not in this build, or the backend's own sentence.
  std::optional<std::string> WhyNot(AttnBackend id, const AttentionSpec& spec,
                                    const DeviceInfo& device) const;
  // Why automatic selection had better pass over a backend that is here and supports the spec.
  std::optional<std::string> WhyYields(AttnBackend id, const AttentionSpec& spec,
                                       const DeviceInfo& device) const;

  // Parameters of `id` as its builder reads them for the spec (AttentionMetadataBuilder), with
  // every default filled in; "" where the backend takes none. Throws INVALID_ARGUMENT naming
  // "attention.parameters.<key>". `id` has an implementation.
  std::string CanonicalParameters(AttnBackend id, const AttentionSpec& spec,
                                  const std::string& parameters_json) const;

 private:
  std::vector<Entry> entries_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_REGISTRY_H_
