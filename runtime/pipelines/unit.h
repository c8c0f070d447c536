// Units of work: between two of them the engine looks at arrivals, cancels, deadlines, forces and
// the policy. Torch-free.
#ifndef DENOISED_RUNTIME_PIPELINES_UNIT_H_
#define DENOISED_RUNTIME_PIPELINES_UNIT_H_

#include <cstdint>
#include <string>

namespace denoised {

// What a run does next.
enum class UnitKind : uint8_t { kEncodePrompt, kStep, kDecode, kDone };

// One unit of work: nothing interrupts it but its stop points (backends/stop_point.h).
struct Unit {
  UnitKind kind = UnitKind::kDone;
  int64_t rows = 1;    // kStep: of the transformer's forward, passes of guidance counted; else 1
  int64_t tokens = 0;  // kEncodePrompt: of the prompt; kStep: of a row; kDecode: latent positions
  // kStep: runs of one pipeline with equal groups can share a forward, whatever their timesteps,
  // step counts, prompts, guidance, solvers and attention backends. Of every kind: the name under
  // which times are kept, so never empty but at kDone.
  std::string group;
  double multiply_adds = 0;  // of one row

  bool operator==(const Unit&) const = default;
};

// What a run will do, told before it begins: so many units like this one.
struct PlannedUnits {
  Unit unit;
  int64_t count = 0;

  bool operator==(const PlannedUnits&) const = default;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_UNIT_H_
