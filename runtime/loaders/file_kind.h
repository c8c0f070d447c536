// What lies where a model's file should be: pointers of Git LFS, web pages, pickles, halves of a
// download. Each gets an Error that says what it is and what to do. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_FILE_KIND_H_
#define DENOISED_RUNTIME_LOADERS_FILE_KIND_H_

#include <string>
#include <vector>

#include "runtime/loaders/file.h"

namespace denoised {

// Throws INVALID_ARGUMENT (reason LFS_POINTER, WEB_PAGE, PICKLE or INCOMPLETE_DOWNLOAD) where
// `file` is plainly not what its name says. Looks at its first bytes.
void CheckKind(const ReadOnlyFile& file);

// Why a folder with these `names` has no weights, as the end of a sentence: "; only ..."; with the
// reason for programs, empty where the names tell nothing.
struct Finding {
  std::string text, reason;
};
Finding ExplainNoWeights(const std::vector<std::string>& names, const std::string& stem);

// The unfinished file of a download tool among `names`; "" where there is none.
std::string UnfinishedDownload(const std::vector<std::string>& names);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_FILE_KIND_H_
