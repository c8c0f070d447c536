#include "backends/admission.h"

namespace denoised {

std::optional<std::string> RefuseUnmeasured(Admission admission, const std::string& what) {
  if (admission == Admission::kUnmeasured) return std::nullopt;
  return what + " has not run on a device yet; --admit_unmeasured admits it";
}

}  // namespace denoised
