// A run alone, from unit to unit.
#ifndef DENOISED_TESTS_RUNTIME_DRIVE_H_
#define DENOISED_TESTS_RUNTIME_DRIVE_H_

#include "runtime/pipelines/pipeline.h"

namespace denoised {

// Throws what the unit throws.
inline void DoNext(Pipeline* pipeline, Run* run) {
  if (run->Next().kind != UnitKind::kStep) return run->Advance();
  if (const auto error = pipeline->Step({run}).front()) throw *error;
}

// Until the next unit is of this kind, or the run is done.
inline void DriveTo(UnitKind kind, Pipeline* pipeline, Run* run) {
  for (;;) {
    const UnitKind next = run->Next().kind;
    if (next == kind || next == UnitKind::kDone) return;
    DoNext(pipeline, run);
  }
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_DRIVE_H_
