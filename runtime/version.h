// Which build this is.
#ifndef DENOISED_RUNTIME_VERSION_H_
#define DENOISED_RUNTIME_VERSION_H_

#include <string>

namespace denoised {

// "0.1.0+1a2b3c4d5e6f", the project's version and the commit it was built from; ".dirty" at the end
// where tracked files were changed; "0.1.0" where no commit is known (cmake/Version.cmake).
std::string Version();

}  // namespace denoised

#endif  // DENOISED_RUNTIME_VERSION_H_
