#include "server/cli/preview_file.h"

#include "server/cli/output_file.h"

namespace denoised::cli {

PreviewFile::PreviewFile(const std::string& path, Interrupts* interrupts)
    : path_(path), interrupts_(interrupts) {
  if (path.empty()) return;
  if (path == "-") throw UsageError("--preview is a file that is replaced, got '-'");
  const OutputFile probe(path, interrupts);  // leaves nothing
  if (probe.in_place()) {
    throw UsageError("--preview is a file that is replaced, and '" + path + "' is none");
  }
}

void PreviewFile::Take(v1::Job* job) const {
  if (path_.empty() || !job->has_preview()) return;
  OutputFile file(path_, interrupts_);
  file.Write(job->preview().png());
  file.Commit();
  job->mutable_preview()->clear_png();
}

Flag PreviewFlag(std::string* path) {
  return {"preview", "FILE", "",
          "PNG of the job on its way, replaced with each step that is shown (at most 4 a second).",
          SetString(path)};
}

}  // namespace denoised::cli
