// Measures backends: seconds of a call, and how far its result is from REFERENCE. Torch-free.
#ifndef DENOISED_RUNTIME_PIPELINES_MEASURE_H_
#define DENOISED_RUNTIME_PIPELINES_MEASURE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backends/error.h"
#include "backends/registry.h"
#include "runtime/attention/measurements.h"

namespace denoised {

struct MeasureLimits {
  double enough_seconds = 1;  // of samples
  double most_seconds = 10;   // of one call
  // Of tensors, and as much again of what a call takes beside them.
  int64_t most_bytes = int64_t{512} << 20;
  // Asked at stop points: what it says ends the measurement, and is thrown.
  std::function<std::optional<Error>()> why_stop = {};
};

// Tensors of a kind of call, made from a seed: queries, keys and values of deviation 1, so that
// scores have deviation 1 too, about as a normalised layer's have. A mask hides the last eighth of
// the keys. All backends of a group are measured with one of these. The tensors are there from the
// first call of them until they are let go of, and have the same numbers whenever they are made.
// One thread.
class MeasuredCall {
 public:
  // With fewer heads than the layer has where a call would take too long or too much memory:
  // backends work head by head. Throws RESOURCE_EXHAUSTED where one head is too much,
  // INVALID_ARGUMENT for a dtype that no backend takes.
  MeasuredCall(const MeasureShape& shape, const DeviceInfo& device,
               const MeasureLimits& limits = {});
  ~MeasuredCall();

  // The group that its rows belong to, without rows.
  MeasuredGroup Group() const;
  void LetGo();

 private:
  friend class Measuring;
  struct Tensors;

  Tensors& Made();

  const MeasuredKey key_;  // of the layer
  const AttentionSpec spec_;
  const DeviceInfo device_;
  const int64_t rows_;
  std::unique_ptr<Tensors> tensors_;  // null: not made
};

// What came of a measurement: a row, or a sentence.
struct Measured {
  std::optional<MeasuredRow> row;
  std::string why_not;
};

// One backend on one kind of call, a call at a time, so that others have the device in between: one
// to warm up, of which the error is taken, for some of the queries; then up to five samples, for as
// long as `enough_seconds` last, of which the fastest counts. Short calls are repeated, for some
// milliseconds. There is no row where the backend cannot serve the call, where that takes too long
// or too much memory, or where its numbers are not finite. One thread.
class Measuring {
 public:
  // All are borrowed but for the limits.
  Measuring(AttnBackend id, MeasuredCall* call, const BackendRegistry& registry,
            MeasureLimits limits = {});
  ~Measuring();

  // Makes the next call; something once there is no more to make. Throws what `why_stop` says, and
  // can then go on; or DEVICE_LOST. Blocks.
  std::optional<Measured> Advance();

 private:
  class Calls;

  void Begin();

  const AttnBackend id_;
  MeasuredCall& call_;
  const BackendRegistry& registry_;
  const MeasureLimits limits_;
  std::unique_ptr<Calls> calls_;  // of the backend, once it is known that it can serve them
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_MEASURE_H_
