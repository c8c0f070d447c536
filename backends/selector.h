// Which backend serves a layer, and why. Torch-free.
//
// Re-creates FastVideo's fastvideo/attention/selector.py, get_attn_backend. Two things differ on
// purpose: a force takes effect at once (everything that changes the answer is an input of Select,
// nothing is cached behind its back), and the automatic answer is checked against the layer's list
// and the backend's limits like any other, in an order that its caller may know better than the
// table.
#ifndef DENOISED_BACKENDS_SELECTOR_H_
#define DENOISED_BACKENDS_SELECTOR_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/registry.h"

namespace denoised {

// Strongest first.
enum class SelectionSource : uint8_t { kForce, kRequest, kEnvironment, kModelDefault, kAutomatic };
inline constexpr std::array kSelectionSources = {
    SelectionSource::kForce, SelectionSource::kRequest, SelectionSource::kEnvironment,
    SelectionSource::kModelDefault, SelectionSource::kAutomatic};

// The one spelling, on the wire, in metrics and in the client: "force", "request", "environment",
// "model_default", "automatic". Back: empty for any other text.
std::string_view SelectionSourceName(SelectionSource source);
std::optional<SelectionSource> SelectionSourceFromName(std::string_view name);

enum class SelectionMode : uint8_t {
  kPrefer,  // a refused wish falls to the next one; the receipt says so
  kStrict,  // a refused force or request fails the job: FAILED_PRECONDITION with every refusal
};

// One source's wish for a backend.
struct Wish {
  SelectionSource source = SelectionSource::kAutomatic;
  AttnBackend backend = AttnBackend::kReference;
  std::string parameters;                  // the backend's own, a JSON object; "" = none were given
  std::string lease_id;                    // of the force, where source is kForce
  std::optional<int> rule = std::nullopt;  // of the source's schedule, counted from 0
  bool strict = false;                     // as kStrict, for this wish alone
  std::string measured = {};               // that an automatic choice rests on, a text; "" = none
  bool operator==(const Wish&) const = default;
};

// What automatic selection tries before the registry's order, and what was measured of it.
struct PreferredBackend {
  AttnBackend backend = AttnBackend::kReference;
  std::string measured;
  bool operator==(const PreferredBackend&) const = default;
};

// A wish that could not be granted.
struct Refusal {
  SelectionSource source;
  AttnBackend backend;
  std::string reason;
  bool operator==(const Refusal&) const = default;
};

struct Selection {
  Wish granted;                   // with canonical parameters, "" where the backend takes none
  std::vector<Refusal> refusals;  // stronger wishes first, then the automatic candidates passed
                                  // over; each once
  std::string Reason() const;     // one sentence for receipts and logs
  bool operator==(const Selection&) const = default;
};

// Why a backend that could serve a layer may not now; nothing where it may.
using Objection = std::function<std::optional<std::string>(AttnBackend)>;

// FastVideo's get_attn_backend: the first of `wishes` that can serve the layer, with its parameters
// as the backend reads them for this spec; where none can, the first automatic backend that can.
// An `objection` (may be empty) refuses backends that could. Pure and thread-safe.
//
// Automatic selection tries `preferred` before the registry's order: what somebody knows to be best
// for this spec, the best first (runtime/attention/measurements.h). Such a backend need not be an
// automatic one, and does not yield to others; the layer's list and the backend's limits hold for
// it as for any.
//
// A wish whose backend refuses its parameters is refused like any other, except the request's: that
// throws INVALID_ARGUMENT naming the key, even where a stronger wish hides it. Throws
// INVALID_ARGUMENT where spec.supported is empty (always, even when forced), and
// FAILED_PRECONDITION where nothing on the list can serve the spec or where mode is kStrict and a
// force or request was refused before another wish was granted. A backend that the layer does not
// list is not a strict failure for roles other than self-attention: cross-attention and encoders
// keep their short lists.
Selection Select(const AttentionSpec& spec, std::span<const Wish> wishes,
                 const BackendRegistry& registry, const DeviceInfo& device,
                 SelectionMode mode = SelectionMode::kPrefer,
                 std::span<const PreferredBackend> preferred = {}, const Objection& objection = {});

// Why `wish` cannot be granted for the layer, whatever others wish; empty where it can. Throws as
// Select for parameters of the request's.
std::optional<std::string> WhyNotGranted(const Wish& wish, const AttentionSpec& spec,
                                         const BackendRegistry& registry, const DeviceInfo& device,
                                         const Objection& objection = {});

// Whether an operator can act on a refusal of `backend` for the layer: not where the role keeps a
// short list by design.
bool IsActionable(AttnBackend backend, const AttentionSpec& spec);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_SELECTOR_H_
