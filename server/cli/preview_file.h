// The file that shows a job's newest preview.
#ifndef DENOISED_SERVER_CLI_PREVIEW_FILE_H_
#define DENOISED_SERVER_CLI_PREVIEW_FILE_H_

#include <string>

#include "denoised/v1/generation.pb.h"
#include "server/cli/interrupts.h"
#include "server/flags.h"

namespace denoised::cli {

// Replaced as a whole with each preview that comes, so that whoever looks at it sees a picture. One
// thread.
class PreviewFile {
 public:
  // "" = none is wanted. Refuses at once what cannot be written (CommandError) and what is no file
  // (UsageError).
  PreviewFile(const std::string& path, Interrupts* interrupts);

  // Writes the preview that came with this state, if one did, and takes its bytes out of `job`:
  // they are in the file. Throws CommandError.
  void Take(v1::Job* job) const;

 private:
  const std::string path_;
  Interrupts* const interrupts_;
};

// --preview of the commands that follow a job.
Flag PreviewFlag(std::string* path);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_PREVIEW_FILE_H_
